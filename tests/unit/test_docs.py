"""The documentation: its links lead somewhere, and its examples are what the code accepts."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from lasro.config import RunSettings
from lasro.methods.base import Method
from lasro.methods.registry import METHODS, method_of
from lasro.methods.surrogate_ascent import SurrogateAscent
from lasro.wire import Protocol
from lasro_reward_api.protocols import CODECS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SMALLEST_RUN = {
    "name": "example",
    "prompts": {"train": "train.txt", "held_out": "held-out.txt"},
    "rewards": [{"name": "example"}],
}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """A renamed page leaves dead links behind."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_merge_left_its_marks(page):
    """Bug: a page had both sides of a merge, with the marks between them."""
    assert not re.search(r"^(<{7}|>{7}|={7})( |$)", page.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_toml_examples_are_valid_settings(page):
    """A setting that was renamed would be refused when a reader copies the example."""
    for text in blocks(page, "toml"):
        RunSettings.model_validate(SMALLEST_RUN | tomllib.loads(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_compile(page):
    """A typing error in an example."""
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")


def test_protocol_settings_in_examples_are_accepted():
    """An example of registering a reward is refused when a reader copies it."""
    text = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    commands = re.findall(r"lasro rewards add [^'\n]*(?:\\\n[^'\n]*)*--mapping '(.*?)'", text, re.S)
    protocols = re.findall(r"lasro rewards add [^'\n]*--protocol (\S+)", text)
    protocols = [protocol for protocol in protocols if protocol != "flow-factory"]
    assert set(protocols) == set(Protocol) - {"native", "flow-factory"}
    for protocol, settings in zip(protocols, commands, strict=True):
        CODECS[Protocol(protocol)].check(json.loads(settings))


def test_every_page_is_on_the_map():
    """A page that the index does not name is not found."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name


def test_every_method_has_settings_and_a_place_on_its_page():
    """A method that is registered and cannot be named in a run, or that nobody finds."""
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    teacher = {"teacher": "t", "teacher_latents": "l.safetensors"}
    for kind in METHODS:
        needs = teacher if kind == "reward-guided-lcd" else {}
        config = RunSettings.model_validate(SMALLEST_RUN | {"method": {"type": kind} | needs})
        assert config.method.type == kind
        assert f'`"{kind}"`' in page, kind
        assert issubclass(method_of(config), Method)


def test_the_update_beside_the_equation_is_the_one_that_runs():
    """Guards against a page that shows an update of the last release."""
    source = textwrap.dedent(inspect.getsource(SurrogateAscent.update)).strip()
    assert source in (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
