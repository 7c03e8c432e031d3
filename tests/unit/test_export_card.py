"""`lasro export` of a run: the card, what the run says of itself, and what is refused before a model is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapters import PLAIN, UNET, diffusers_form, random_factors, write_adapter
from fake_hub import TOKEN, FakeHub
from finished_run import HELD_OUT, write_finished_run
from huggingface_hub import ModelCard, constants
from safetensors import safe_open
from starlette.types import ASGIApp
from typer.testing import CliRunner

from lasro.config import ModelSettings
from lasro.errors import ConflictError, NotFoundError
from lasro_client.cli.main import app
from lasro_client.export.source import base_of, find_source


@pytest.fixture
def run(tiny_model_path: Path, tmp_path: Path) -> Path:
    """With an adapter of attention layers and convolutions."""
    folder = write_finished_run(tmp_path / "sharp", tiny_model_path)
    write_adapter(folder / "adapter" / PLAIN, diffusers_form(random_factors(tiny_model_path / UNET, ("to_q", "conv1"))))
    return folder


def lasro(*arguments: Any) -> dict[str, Any]:
    """What the command prints with `--json`."""
    done = CliRunner().invoke(app, ["export", *map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def read_card(folder: Path) -> tuple[Any, str]:
    """What the hub reads from its head, and its text."""
    card = ModelCard.load(folder / "README.md")
    return card.data, card.text


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_card_tells_what_the_run_did(run: Path, tmp_path: Path) -> None:
    """Guards against a card of which the hub reads nothing, against paths of this machine, and against figures that
    are not the run's."""
    out = tmp_path / "mine"
    done = lasro(run, "--out", out, "--format", "kohya", "--dtype", "float16")
    assert done == {
        "adapter": str(out / "mine.safetensors"), "format": "kohya", "adapter_keys": {"loaded": 32, "total": 32},
    }  # fmt: skip
    data, text = read_card(out)
    assert (data.library_name, data.pipeline_tag, data.model_name) == (
        "diffusers",
        "text-to-image",
        "mine",
    )
    assert {"lora", "lasro"} <= set(data.tags)
    results = {(each.metric_type, each.metric_name): each.metric_value for each in data.eval_results}
    assert results["sharpness", "sharpness, two step"] == pytest.approx(0.5)
    assert re.search(
        r"^\| sharpness \| one step \| 0\.25 ± 0\.076 \| 0\.5 ± 0\.076 \| 0\.25 ± \S+ \| 6 \|$", text, re.M
    )
    assert "sharpness (weight 2), safe (weight 1, at least 0.5); their sum" in text
    assert "0.31 ± 0.02 (one step), 0.31 ± 0.02 (two step)" in text
    assert "trained on `train.txt`, 3 prompts" in text
    assert sha256(tmp_path / "train.txt") in text
    assert f"| `mine.safetensors` | `{sha256(out / 'mine.safetensors')}` |" in text
    assert 'load_lora_weights("mine", weight_name="mine.safetensors")' in text
    assert "guidance_scale=8" in text
    assert str(tmp_path) not in (out / "README.md").read_text()
    shown = [each["output"]["url"] for each in data.widget]
    assert len(shown) == 4
    assert all((out / url).stat().st_size > 0 and f"]({url})" in text for url in shown)
    assert {each["text"] for each in data.widget} <= set(HELD_OUT)
    assert "a \\| house" in text
    assert "| a | house" not in text
    with safe_open(out / "mine.safetensors", "pt") as opened:
        metadata = opened.metadata()
    assert metadata["ss_training_comment"] == "LaSRO, run sharp: sharpness, safe"
    assert (metadata["ss_seed"], metadata["ss_learning_rate"]) == ("3", "0.0003")
    assert metadata["modelspec.thumbnail"].startswith("data:image/webp;base64,")
    assert "fine-tuned by LaSRO for sharpness, safe" in metadata["modelspec.description"]


def test_a_merged_model_has_a_card_too(run: Path, tmp_path: Path, tiny_model_path: Path) -> None:
    """Guards against a hash of one file of four, figures of strength 1 under another strength, and diffusers' notes of
    the folder that each part was read from."""
    assert lasro(run / "adapter", "--out", tmp_path / "mine", "--format", "merged", "--strength", "0.5") == {
        "model": str(tmp_path / "mine"), "adapter_keys": {"loaded": 32, "total": 32},
    }  # fmt: skip
    data, text = read_card(tmp_path / "mine")
    assert "strength | 0.5; figures and pictures below are those of strength 1" in text
    assert data.eval_results is None
    assert "lora" not in data.tags
    assert "A LoRA fused into tiny, a few-step model, fine-tuned by LaSRO for sharpness, safe." in text
    told = [path.read_text() for path in (tmp_path / "mine").rglob("*") if path.suffix in (".json", ".md")]
    assert not [text for text in told if str(tiny_model_path) in text or str(tmp_path) in text]
    files = sorted((tmp_path / "mine").rglob("*.safetensors"))
    assert len(files) == 4
    assert all(f"| `{file.relative_to(tmp_path / 'mine')}` | `{sha256(file)}` |" in text for file in files)


def test_an_adapter_of_another_origin_has_a_short_card(run: Path, tiny_model_path: Path, tmp_path: Path) -> None:
    """Guards against an export that needs a run, or that takes the figures of a run which lies next to it."""
    (run / "adapter").rename(run / "another")
    lasro(run / "another", "--model", tiny_model_path, "--out", tmp_path / "mine", "--format", "peft")
    data, text = read_card(tmp_path / "mine")
    assert data.library_name == "peft"
    assert "| reward |" not in text
    assert 'prefix="base_model.model"' in text
    config = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 4, "LORA")
    assert str(tmp_path) not in json.dumps(config)


def test_what_of_a_run_is_gone_is_left_out(run: Path, tmp_path: Path) -> None:
    """Guards against a traceback for a run that is not finished, and for prompts and pictures that were moved."""
    (run / "summary.json").unlink()
    (tmp_path / "train.txt").unlink()
    for image in (run / "evaluation" / "after" / "two").iterdir():
        image.write_bytes(b"")
    lasro(run, "--out", tmp_path / "mine", "--format", "diffusers")
    text = (tmp_path / "mine" / "README.md").read_text()
    assert "trained on `train.txt`, which is no longer where the run read it" in text
    assert "Before and after" not in text
    assert not (tmp_path / "mine" / "images").exists()


def test_prompts_of_a_data_set_are_named_by_it(run: Path, tmp_path: Path) -> None:
    """Guards against a table of settings where the name of the prompts should stand."""
    config = json.loads((run / "config.json").read_text())
    config["prompts"]["train"] = {"dataset": "some/prompts", "limit": 2}
    (run / "config.json").write_text(json.dumps(config))
    (run / "prompts").mkdir()
    (run / "prompts" / "train.jsonl").write_text('{"prompt": "a kite"}\n{"prompt": "a kiwi"}\n')
    lasro(run, "--out", tmp_path / "mine", "--format", "diffusers")
    kept = sha256(run / "prompts" / "train.jsonl")
    _, text = read_card(tmp_path / "mine")
    assert f"trained on `some/prompts`, 2 prompts, SHA-256 `{kept}`: a kite; a kiwi" in text


def test_it_goes_to_the_hub(
    run: Path, tmp_path: Path, serve: Callable[[ASGIApp], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against an upload without the card, or of something else than what was written here."""
    hub = FakeHub()
    hub.url = serve(hub.app)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    out = tmp_path / "mine"
    done = lasro(run, "--out", out, "--format", "diffusers", "--push-to-hub", "somebody/sharp")
    assert done["repo"] == f"{hub.url}/somebody/sharp"
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert hub.files["somebody/sharp"] == files
    assert {"README.md", PLAIN} <= files.keys()
    assert b'load_lora_weights("somebody/sharp"' in files["README.md"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "lycoris"), "--format.*'lycoris' is not one of 'diffusers', 'kohya', 'peft', 'merged'"),
        (("--dtype", "int8"), "--dtype.*'int8' is not one of 'float32', 'bfloat16', 'float16'"),
        (("--strength", "0"), "Invalid value for --strength: got 0, expected a number other than 0"),
        (("--strength", "nan"), "Invalid value for --strength: got nan, expected a number other than 0"),
        (("--strength", "-inf"), "Invalid value for --strength: got -inf, expected a number other than 0"),
        (("--strength", "much"), "--strength.*number"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """Guards against an adapter of NaN, and against a base that is sold as fine-tuned."""
    done = CliRunner().invoke(app, ["export", "adapter", "--out", str(tmp_path / "mine"), *arguments])
    assert done.exit_code == 2
    assert re.search(message, " ".join(done.output.replace("│", " ").split()))
    assert not (tmp_path / "mine").exists()


def test_a_run_without_an_adapter_is_named(run: Path, tmp_path: Path) -> None:
    """Guards against the surrogate's weights taken for an adapter, which is the only such file in the folder."""
    (run / "adapter").rename(tmp_path / "elsewhere")
    (run / "surrogate.safetensors").write_bytes(b"")
    with pytest.raises(NotFoundError, match=r"sharp: a run without an adapter, expected .*sharp/adapter; a run writes"):
        find_source(run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"stage": "pretrain"}))
    with pytest.raises(NotFoundError, match="stage 1 trains no generator"):
        find_source(run)


def test_the_runs_model_is_the_base(run: Path, tmp_path: Path, tiny_model_path: Path) -> None:
    """Guards against a run's adapter that is written for the bundled model, as long as nobody names another."""
    source = find_source(run)
    assert source.model == {"path": str(tiny_model_path)}
    for adapter in (run / "adapter", run / "adapter" / PLAIN):
        found = find_source(adapter)
        assert (found.adapter, found.model) == (adapter, source.model)
    other = write_finished_run(tmp_path / "o" / "other", tiny_model_path, unet="some/unet", scheduler="lcm")
    (other / "adapter").mkdir()
    assert find_source(other).model == {"path": str(tiny_model_path), "unet": "some/unet", "scheduler": "lcm"}


@pytest.mark.parametrize(
    ("settings", "name", "hub_ids"),
    [
        ({"path": "bundled"}, "the tiny model that is bundled with lasro", ()),
        ({"path": "/home/somebody/my-model"}, "my-model", ()),
        ({"path": "segmind/SSD-1B"}, "segmind/SSD-1B", ("segmind/SSD-1B",)),
        (
            {"path": "segmind/SSD-1B", "unet": "latent-consistency/lcm-ssd-1b"},
            "segmind/SSD-1B with the UNet of latent-consistency/lcm-ssd-1b",
            ("segmind/SSD-1B", "latent-consistency/lcm-ssd-1b"),
        ),
        ({"path": "./model.safetensors", "unet": "a/b"}, "model.safetensors with the UNet of a/b", ()),
    ],
)
def test_a_base_is_named_as_others_know_it(settings: dict[str, str], name: str, hub_ids: tuple[str, ...]) -> None:
    """Guards against a folder of this machine in a card, and against `base_model` that is none on the hub."""
    assert base_of(ModelSettings.model_validate(settings)) == (name, hub_ids)


def test_a_folder_that_exists_is_refused_by_the_command(run: Path, tmp_path: Path) -> None:
    """Guards against an export over another one."""
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConflictError, match="mine: exists already"):
        lasro(run, "--out", tmp_path / "mine", "--format", "kohya")
