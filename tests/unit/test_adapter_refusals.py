"""Adapters that cannot be applied, or not in full: refused by name, or counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import load, settings
from adapters import PEFT, PLAIN, UNET, Factors, State, diffusers_form, kohya_form, random_factors, write_adapter
from safetensors.torch import save_file

from lasro.errors import ModelError
from lasro.models.unet_generator import UNetGenerator
from lasro.training.prompts import Prompt
from lasro_client.cli import images
from lasro_client.evaluation.export import export
from lasro_client.evaluation.generate import generate


@pytest.fixture(scope="module")
def factors(tiny_model_path: Path) -> Factors:
    """On two kinds of layers of the UNet."""
    return random_factors(tiny_model_path / UNET, ("conv_in", "to_q"))


@pytest.fixture(scope="module")
def tiny_model(tiny_model_path: Path) -> UNetGenerator:
    """For what is refused: nothing is ever put on it."""
    return load(tiny_model_path)


FOREIGN: State = {f"unet.elsewhere.{i}.to_q.lora_A.weight": torch.ones(2, 2) for i in range(5)}


def test_keys_without_a_place_are_refused(tiny_model: UNetGenerator, factors: Factors, tmp_path: Path) -> None:
    """Guards against an adapter that is dropped key by key until the base is left."""
    state = diffusers_form(factors)
    some = write_adapter(tmp_path / "some" / PLAIN, state | FOREIGN)
    total = len(state) + 5
    with pytest.raises(ModelError, match=rf"5 of {total} keys .*elsewhere\.0.*and 2 more.*--partial .*loads the other"):
        tiny_model.load_lora(some)
    with pytest.raises(ModelError, match=r"5 of 5 keys have no place"):
        tiny_model.load_lora(write_adapter(tmp_path / "none" / PLAIN, FOREIGN), partial=True)


def test_a_part_of_an_adapter_is_counted(
    tiny_model_path: Path, factors: Factors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against pictures and models of half an adapter that say nothing of it."""
    state = diffusers_form(factors)
    some, counts = write_adapter(tmp_path / "some" / PLAIN, state | FOREIGN), (len(state), len(state) + 5)
    drawn = generate(settings(tiny_model_path), some, [Prompt("a")], 0, 1, tmp_path / "images", partial=True)
    keys = export(settings(tiny_model_path), some, tmp_path / "model", partial=True)
    assert json.loads(drawn.index_file.read_text())["adapter_keys"] == dict(
        zip(("loaded", "total"), counts, strict=True)
    )
    for counted in (drawn.adapter_keys, keys):
        assert counted is not None
        assert (counted.loaded, counted.total) == counts
    assert [record.message for record in caplog.records] == 2 * [
        f"{some}: loaded {counts[0]} of {counts[1]} keys; left out {', '.join(list(FOREIGN)[:3])} and 2 more"
    ]
    with pytest.raises(ModelError, match="5 of"):
        export(settings(tiny_model_path), some, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def broken(change: Callable[[State], State]) -> Callable[[Factors], State]:
    return lambda factors: change(diffusers_form(factors, ""))


def first(state: State, change: Callable[[torch.Tensor], torch.Tensor], factor: str = "lora_B") -> State:
    key = next(key for key in state if factor in key)
    return state | {key: change(state[key])}


REFUSED: dict[str, tuple[Callable[[Factors], State], str]] = {
    "NaN": (broken(lambda s: first(s, lambda t: t * float("nan"))), r"tensor .*lora_B\.weight holds NaN or infinity"),
    "infinity": (broken(lambda s: first(s, lambda t: t / 0)), "holds NaN or infinity"),
    "integers": (broken(lambda s: first(s, lambda t: t.int())), "int32, expected floating point"),
    "nothing": (lambda _: {}, "holds no tensors"),
    "rank": (broken(lambda s: first(s, lambda t: t[:, :2])), r"lora_B\.weight: got shape .* expected"),
    "shape": (broken(lambda s: first(s, lambda t: t[:, :2], "lora_A")), r"lora_A\.weight: got shape .* another"),
    "half a pair": (broken(lambda s: {k: t for k, t in s.items() if "lora_A" in k}), "no place"),
    "twice": (broken(lambda s: s | {f"unet.{k}": t for k, t in s.items()}), "are the same"),
    "alpha": (lambda f: first(kohya_form(f), lambda t: torch.ones(3), "alpha"), "expected one number"),
    "bias": (broken(lambda s: s | {k.replace("weight", "bias"): t for k, t in s.items()}), "no place"),
    "LoHa": (lambda f: {k.replace("lora_down", "hada_w1_a"): t for k, t in kohya_form(f).items()}, "LoHa"),
    "LoKr": (lambda f: {k.replace("lora_down", "lokr_w1"): t for k, t in kohya_form(f).items()}, "LoKr"),
    "no rank": (broken(lambda s: first(s, lambda t: t[:0], "lora_A")), r"lora_A\.weight: got shape \(0, "),
    "a number": (broken(lambda s: first(s, lambda t: t.sum(), "lora_A")), r"lora_A\.weight: got shape \(\), expected"),
    "FLUX": (lambda _: {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 2)}, "FLUX"),
    "FLUX by kohya": (lambda _: {"lora_unet_double_blocks_0_img_mlp_0.lora_up.weight": torch.ones(2, 2)}, "FLUX"),
    "a whole UNet": (lambda f: {"conv_in.weight": torch.ones(2), "conv_in.bias": torch.ones(2)}, "whole weights"),
    "textual inversion": (lambda _: {"emb_params": torch.ones(1, 8)}, "a textual inversion, not supported"),
    "some DoRA": (
        lambda f: kohya_form(f) | {"lora_unet_conv_in.dora_scale": torch.ones(16, 1, 1, 1)}, "and some are not"),
    "DoRA by input": (
        lambda f: kohya_form(f) | {"lora_unet_conv_in.dora_scale": torch.ones(1, 4, 1, 1)}, "a norm for each output"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_applied_is_refused_by_name(
    tiny_model: UNetGenerator, factors: Factors, tmp_path: Path, case: str
) -> None:
    """Guards against a NaN model, a traceback, or a part of the adapter that is left out in silence."""
    make, message = REFUSED[case]
    with pytest.raises(ModelError, match=message) as refusal:
        tiny_model.load_lora(write_adapter(tmp_path / PLAIN, make(factors)))
    assert len(str(refusal.value)) < 700
    assert "\n" not in str(refusal.value)


CONFIGS: dict[str, tuple[dict[str, Any] | None, str]] = {
    "no configuration": (None, r"lacks adapter_config\.json"),
    "another rank": ({"r": 8, "lora_alpha": 8}, "rank 4, but its configuration says 8"),
    "another method": ({"peft_type": "LOHA", "r": 4}, "'LOHA' is not supported"),
    "another base": ({"r": 4, "lora_alpha": 4, "init_lora_weights": "pissa"}, "'pissa' changed the base"),
    "no pattern": ({"r": 4, "rank_pattern": {"to_(q": 4}}, "'to_\\(q' is no regular expression"),
    "no number": ({"r": 4, "lora_alpha": "NaN"}, "lora_alpha"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_peft_folder_is_read_with_its_configuration(
    tiny_model: UNetGenerator, factors: Factors, tmp_path: Path, case: str
) -> None:
    """Guards against the wrong scale: weights alone do not say by what they are multiplied."""
    config, message = CONFIGS[case]
    folder = write_adapter(tmp_path / PEFT, diffusers_form(factors, "base_model.model."), config)
    with pytest.raises(ModelError, match=message):
        tiny_model.load_lora(folder)


def test_files_that_are_none_are_named(tiny_model: UNetGenerator, factors: Factors, tmp_path: Path) -> None:
    """Guards against tracebacks, pickles that are run, and a file chosen among several without a word."""

    def refused(path: Path, message: str) -> None:
        with pytest.raises(ModelError, match=message):
            tiny_model.load_lora(path)

    refused(tmp_path / "none", r"no such adapter.*hub ids are not")
    refused(Path("~nobody-at-all/x"), "no such adapter")
    refused(Path("x" * 5000), "cannot be read .File name too long")
    (tmp_path / "runs" / "checkpoint-10").mkdir(parents=True)
    save_file(diffusers_form(factors), tmp_path / "runs" / "checkpoint-10" / PLAIN)
    refused(tmp_path / "runs", rf"its folders do \(checkpoint-10/{PLAIN}\); name one, as .*/checkpoint-10")
    refused(Path(tiny_model.settings.path), "is a whole model, no adapter; give it as model.path")
    (tmp_path / "runs").rename(tmp_path / ".runs")
    refused(tmp_path, r"holds no \.safetensors file; found nothing")
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"\x80\x02.")
    refused(tmp_path, r"pickles \(pytorch_lora_weights\.bin\)")
    refused(tmp_path / "pytorch_lora_weights.bin", r"is a pickle.*convert it to \.safetensors")
    file = tmp_path / PLAIN
    file.write_bytes(b"")
    refused(tmp_path, "is empty")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(tmp_path, "Git LFS.*git lfs pull")
    save_file(diffusers_form(factors), file)
    file.write_bytes(file.read_bytes()[:-8])
    refused(tmp_path, "cannot be read as safetensors")
    save_file(diffusers_form(factors), file)
    save_file(diffusers_form(factors), tmp_path / "other.safetensors")
    refused(tmp_path, rf"2 \.safetensors files \(other\.safetensors, {PLAIN}\); name one, as .*other\.safetensors")


def test_an_adapter_that_changes_nothing_is_pointed_out(
    tiny_model_path: Path, factors: Factors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against the base's pixels without a word for an adapter that was never trained, or has an alpha of 0."""
    untrained = {key: t * (0 if "lora_B" in key else 1) for key, t in diffusers_form(factors).items()}
    for name, state in (("untrained", untrained), ("alpha", kohya_form(factors, alpha=lambda _: 0.0))):
        state = {key: t.nan_to_num(0, 0, 0) for key, t in state.items()}
        load(tiny_model_path).load_lora(write_adapter(tmp_path / name / PLAIN, state))
        assert "changes nothing" in caplog.records[-1].message
    caplog.clear()
    load(tiny_model_path).load_lora(write_adapter(tmp_path / "good" / PLAIN, diffusers_form(factors)))
    assert not caplog.records


def test_a_path_may_begin_at_home(
    tiny_model_path: Path, factors: Factors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: `~` was expanded in model.path and not in a path of an adapter, as a run's file has it."""
    write_adapter(tmp_path / "adapter" / PLAIN, diffusers_form(factors))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(tiny_model_path).load_lora(Path("~/adapter")).missing == ""


def test_a_broken_adapter_is_refused_before_services_start(tmp_path: Path) -> None:
    """Bug: `lasro evaluate` started Redis, a reward API and a reward before it looked at the adapter."""
    (tmp_path / PLAIN).write_bytes(b"")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\n")
    with pytest.raises(ModelError, match="is empty"):
        images.evaluate(prompts, ["no-such-reward"], adapter=tmp_path / PLAIN)
