"""What `lasro export` writes in each form draws the same, read by us and by stock diffusers."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import base_latents, latents, load, load_stock, settings, stock_drawn, stock_latents
from adapters import PLAIN, UNET, Factors, diffusers_form, kohya_form, random_factors, write_adapter
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_sd15 import write_tiny_sd15

from lasro.errors import ConflictError, ModelError
from lasro_client.evaluation.export import export
from lasro_client.export.source import Source
from lasro_client.export.usage import AdapterForm
from lasro_client.export.write import Exported, ExportRequest, export_model

KINDS = ("to_q", "to_out.0", "ff.net.0.proj", "proj_in", "conv1", "conv_shortcut", "time_emb_proj", "conv", "conv_in")
FORMS: tuple[AdapterForm, ...] = ("diffusers", "kohya", "peft")
FILES = {"diffusers": PLAIN, "kohya": "mine.safetensors", "peft": "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def sd15_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd15(tmp_path_factory.mktemp("models") / "sd15")


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def base(request: pytest.FixtureRequest, tiny_model_path: Path, sd15_path: Path) -> Path:
    return tiny_model_path if request.param == "sdxl" else sd15_path


def mixed_ranks(base: Path) -> Factors:
    """On every kind of layer, of ranks 4 and 2."""
    return random_factors(base / UNET, KINDS) | random_factors(base / UNET, ("to_q",), rank=2)


def adapter_of(base: Path, folder: Path, **extra: torch.Tensor) -> Path:
    return write_adapter(folder / PLAIN, diffusers_form(mixed_ranks(base)) | extra)


def exported(base: Path, adapter: Path, out: Path, form: Any, **changes: Any) -> Exported:
    return export_model(ExportRequest(Source(adapter, None), settings(base), out, form, **changes))


@pytest.mark.parametrize("form", FORMS)
def test_each_form_draws_the_same_here_and_in_stock_diffusers(base: Path, tmp_path: Path, form: AdapterForm) -> None:
    """Guards against a form that loses modules, scales or ranks in another tool: a picture like the base's."""
    adapter = adapter_of(base, tmp_path / "adapter")
    expected = latents_with(base, adapter)
    assert (expected - base_latents(base)).abs().max() > 0.05
    done = exported(base, adapter, tmp_path / "mine", form)
    assert done.path == tmp_path / "mine" / FILES[form]
    read_back = load(base)
    keys = read_back.load_lora(tmp_path / "mine")
    assert keys.loaded == keys.total == len(load_file(done.path))
    assert (latents(read_back) - expected).abs().max() <= 1e-4
    if form == "peft":
        pipeline = load_stock(base)
        pipeline.unet.load_lora_adapter(
            tmp_path / "mine", weight_name=FILES[form], prefix="base_model.model", local_files_only=True
        )
        drawn = stock_drawn(pipeline)
    else:
        drawn = stock_latents(base, tmp_path / "mine", FILES[form])
    assert (drawn - expected).abs().max() <= 1e-4


def test_peft_wraps_the_network_with_its_own_form(tiny_model_path: Path, tmp_path: Path) -> None:
    """Guards against names, ranks or an alpha in adapter_config.json that peft reads otherwise than we do."""
    adapter = adapter_of(tiny_model_path, tmp_path / "adapter")
    exported(tiny_model_path, adapter, tmp_path / "mine", "peft")
    expected = latents_with(tiny_model_path, adapter)
    pipeline = load_stock(tiny_model_path)
    unet = pipeline.unet
    wrapped: Any = PeftModel.from_pretrained(copy.deepcopy(unet), str(tmp_path / "mine"))
    try:
        pipeline.unet = wrapped.merge_and_unload()
        assert (stock_drawn(pipeline) - expected).abs().max() <= 1e-4
    finally:
        pipeline.unet = unet


def latents_with(base: Path, adapter: Path) -> torch.Tensor:
    """What we draw with it."""
    model = load(base)
    model.load_lora(adapter)
    return latents(model)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_text_encoders_are_exported_too(base: Path, tmp_path: Path, form: AdapterForm) -> None:
    """Guards against an export of the UNet alone, and against `lora_te1` where a tool looks for `lora_te`."""
    part = "text_encoder_2" if (base / "text_encoder_2").exists() else "text_encoder"
    factors = random_factors(base / part / "model.safetensors", ("q_proj", "out_proj", "fc1"), scale=0.5)
    named = {f"text_model.{name.removeprefix('text_model.')}": pair for name, pair in factors.items()}
    adapter = adapter_of(base, tmp_path / "adapter", **diffusers_form(named, f"{part}."))
    expected = latents_with(base, adapter)
    done = exported(base, adapter, tmp_path / "mine", form)
    assert (stock_latents(base, tmp_path / "mine", FILES[form]) - expected).abs().max() <= 1e-4
    read_back = load(base)
    read_back.load_lora(tmp_path / "mine")
    assert (latents(read_back) - expected).abs().max() <= 1e-4
    if form == "kohya":
        prefix = "lora_te2_text_model_" if part == "text_encoder_2" else "lora_te_text_model_"
        assert sum(key.startswith(prefix) for key in load_file(done.path)) == 3 * len(factors)
    with pytest.raises(ModelError, match=f"LoRA of {part} and unet, but peft's form is of the UNet alone"):
        exported(base, adapter, tmp_path / "peft", "peft")


@pytest.mark.parametrize("form", [*FORMS, "merged"])
def test_strength_is_a_factor_of_what_is_added(tiny_model_path: Path, tmp_path: Path, form: Any) -> None:
    """Guards against a strength that enters both factors, or the alpha too, as a square."""
    factors = mixed_ranks(tiny_model_path)
    halved = {name: (down, up * -0.5) for name, (down, up) in factors.items()}
    expected = latents_with(tiny_model_path, write_adapter(tmp_path / "half" / PLAIN, diffusers_form(halved)))
    adapter = write_adapter(tmp_path / "adapter" / PLAIN, kohya_form(factors))
    exported(tiny_model_path, adapter, tmp_path / "mine", form, strength=-0.5)
    out = tmp_path / "mine"
    drawn = latents(load(out)) if form == "merged" else latents_with(tiny_model_path, out)
    assert (drawn - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("form", [*FORMS, "merged"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes(tiny_model_path: Path, tmp_path: Path, form: Any, dtype: Any) -> None:
    """Guards against a file of another dtype than asked for, and against an alpha that is rounded."""
    adapter = adapter_of(tiny_model_path, tmp_path / "adapter")
    done = exported(tiny_model_path, adapter, tmp_path / "mine", form, dtype=dtype)
    files = sorted(done.path.rglob("*.safetensors")) if form == "merged" else [done.path]
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    alphas = {name for name in tensors if name.endswith(".alpha")}
    floating = {t.dtype for name, t in tensors.items() if name not in alphas and t.is_floating_point()}
    assert floating == {getattr(torch, dtype)}
    assert {tensors[name].dtype for name in alphas} <= {torch.float32}
    assert {tensors[name].item() for name in alphas} == ({4.0} if form == "kohya" else set())
    assert len(files) == (4 if form == "merged" else 1)


@pytest.mark.parametrize("form", ["diffusers", "peft", "kohya"])
def test_dora_keeps_its_norms(sd15_path: Path, tmp_path: Path, form: AdapterForm) -> None:
    """Guards against norms left out, and against a strength that no norm can have."""
    factors = random_factors(sd15_path / UNET, ("to_q", "conv1"))
    state = diffusers_form(factors)
    for module, (_, up) in factors.items():
        state[f"unet.{module}.lora_magnitude_vector"] = torch.linspace(0.5, 1.5, len(up))
    adapter = write_adapter(tmp_path / "adapter" / PLAIN, state)
    expected = latents_with(sd15_path, adapter)
    exported(sd15_path, adapter, tmp_path / "mine", form)
    assert (latents_with(sd15_path, tmp_path / "mine") - expected).abs().max() <= 1e-4
    if form == "diffusers":
        assert (stock_latents(sd15_path, tmp_path / "mine", PLAIN) - expected).abs().max() <= 1e-4
    with pytest.raises(ModelError, match=r"got DoRA and strength 0\.5, expected a plain LoRA"):
        exported(sd15_path, adapter, tmp_path / "half", form, strength=0.5)


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def test_metadata_says_what_it_is(base: Path, tmp_path: Path) -> None:
    """Guards against a LoRA of SDXL that A1111 hides among those of SD1.5, and a hash that no tool computes."""
    adapter = adapter_of(base, tmp_path / "adapter")
    file = exported(base, adapter, tmp_path / "mine", "kohya").path
    found, content = metadata(file), file.read_bytes()
    sha256 = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    is_sdxl = (base / "text_encoder_2").exists()
    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"stable-diffusion-{'xl-v1-base' if is_sdxl else 'v1'}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models" if is_sdxl else "diffusers",
        "modelspec.title": "mine",
        "modelspec.resolution": "16x16",
        "modelspec.hash_sha256": f"0x{sha256}",
        "modelspec.prediction_type": "epsilon",
        "sshs_model_hash": sha256,
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0" if is_sdxl else "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4.0",
        "ss_sd_model_name": base.name,
        "ss_output_name": "mine",
    }
    assert {key: found.get(key) for key in expected} == expected
    assert json.loads(found["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "4"}
    assert str(tmp_path) not in json.dumps(found)
    plain = metadata(exported(base, adapter, tmp_path / "plain", "diffusers").path)
    assert plain["modelspec.implementation"] == "diffusers"
    assert not [key for key in plain if key.startswith("ss")]


def test_timesteps_go_along(tiny_model_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Guards against an exported adapter of which nobody knows at which timesteps it is to be sampled."""
    adapter = write_adapter(
        tmp_path / "adapter" / PLAIN,
        diffusers_form(mixed_ranks(tiny_model_path)),
        None,
        {"lasro_timesteps": "[999, 299]"},
    )
    done = exported(tiny_model_path, adapter, tmp_path / "mine", "kohya")
    assert metadata(done.path)["lasro_timesteps"] == "[999, 299]"
    assert "timesteps=[999, 299]" in (tmp_path / "mine" / "README.md").read_text()
    assert "was trained for timesteps [999, 299]" in caplog.text


def too_large(base: Path, folder: Path) -> Path:
    state = {
        key: tensor * 1e6 if "lora_B" in key else tensor for key, tensor in diffusers_form(mixed_ranks(base)).items()
    }
    return write_adapter(folder / PLAIN, state)


def guidance_embedding(base: Path, folder: Path) -> Path:
    added = {"unet.time_embedding.cond_proj.lora_A.weight": torch.ones(2, 16)}
    return adapter_of(base, folder, **added, **{"unet.time_embedding.cond_proj.lora_B.weight": torch.ones(16, 2)})


REFUSED: dict[str, tuple[Callable[[Path, Path], Path], dict[str, Any], str]] = {
    "overflow": (too_large, {"form": "kohya", "dtype": "float16"}, "tensors overflow in float16 .*use --dtype float32"),
    "overflow, merged": (too_large, {"form": "merged", "dtype": "float16"}, "unet: weights overflow in float16"),
    "no name": (
        guidance_embedding, {"form": "kohya"},
        r"1 modules have no name in kohya's form \(unet\.time_embedding\.cond_proj\).*use --format diffusers"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_form_cannot_say_is_refused(tiny_model_path: Path, tmp_path: Path, case: str) -> None:
    """Guards against a file of which another tool leaves something out, or draws black."""
    make, arguments, message = REFUSED[case]
    with pytest.raises(ModelError, match=message) as refusal:
        exported(tiny_model_path, make(tiny_model_path, tmp_path / "adapter"), tmp_path / "mine", **arguments)
    assert "\n" not in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize("form", [None, *FORMS, "merged"])
def test_a_folder_that_exists_is_left_alone(tiny_model_path: Path, tmp_path: Path, form: Any) -> None:
    """Guards against an export over something else, and against one that is found out after the model was loaded."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "other.txt").write_text("kept")
    with pytest.raises(
        ConflictError, match=r"mine: exists already, expected a new folder; choose another or delete it"
    ):
        exported(Path("no-model"), Path("no-adapter"), tmp_path / "mine", form)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["other.txt"]


def test_without_a_format_it_writes_what_it_always_wrote(tiny_model_path: Path, tmp_path: Path) -> None:
    """Guards against a card, another dtype or another file in what scripts of old ask for."""
    adapter = adapter_of(tiny_model_path, tmp_path / "adapter")
    done = exported(tiny_model_path, adapter, tmp_path / "now", None)
    keys = export(settings(tiny_model_path), adapter, tmp_path / "then")
    assert done == (tmp_path / "now", keys, None)
    files = {name: contents(tmp_path / name) for name in ("now", "then")}
    assert files["now"] == files["then"]
    assert "README.md" not in files["now"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
