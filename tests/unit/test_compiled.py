"""`model.compile`: networks compiled by torch.compile against the same networks as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_transformers import write_tiny_sana
from torch import Tensor, nn

from lasro.config import LoraSettings, ModelSettings, SurrogateSettings
from lasro.errors import ModelError
from lasro.models.base import GeneratorModel
from lasro.models.compiled import CACHE_VARIABLE, compile_network, prepare_compiler
from lasro.models.registry import load_model
from lasro.models.surrogate import SurrogateReward, build_surrogate, score_and_gradient

pytestmark = pytest.mark.filterwarnings("default")  # torch's compiler looks at what it warns of
PROMPTS = ["a red star", "a blue square", "a green ring"]
TWICE = """
import json, sys
from torch._dynamo.utils import counters
from lasro.config import ModelSettings
from lasro.models.registry import load_model
import torch
model = load_model(ModelSettings(path=sys.argv[1], device="cpu", compile=True))
with torch.no_grad():
    model.predict_clean(torch.zeros(1, *model.latent_shape), model.steps(1)[0], model.embed(["a red star"]))
print(json.dumps(counters["aot_autograd"]))
"""


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    os.environ.pop(CACHE_VARIABLE, None)  # that of a test's own folder


def load(path: Path, **settings: Any) -> GeneratorModel:
    return load_model(ModelSettings(path=str(path), device="cpu", **settings))


def compilations() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def adapted(model: GeneratorModel) -> list[nn.Parameter]:
    """Its LoRA, with an effect."""
    parameters = model.add_lora(LoraSettings(rank=2), seed=0)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in parameters:
            each += 0.1 * torch.randn(each.shape, generator=draws)
    return parameters


def both(model: GeneratorModel, parameters: list[nn.Parameter], count: int) -> list[Tensor]:
    """Latents of the adapted network and of the base, the gradient of an update, and a surrogate's."""
    draws = torch.Generator().manual_seed(count)
    noise_BCHW = torch.randn(count, *model.latent_shape, generator=draws)
    step, conditioning = model.steps(1)[0], model.embed(PROMPTS[:count])
    with torch.no_grad():
        base_BCHW = model.predict_clean(noise_BCHW, step, conditioning, base=True)
        sampled_BCHW = model.predict_clean(noise_BCHW, step, conditioning)
    z_BCHW = model.predict_clean(noise_BCHW, step, conditioning)
    gradients = torch.autograd.grad((z_BCHW - base_BCHW).square().mean(), parameters)
    return [base_BCHW, sampled_BCHW, z_BCHW.detach(), *gradients]


def check_close(found: list[Tensor], expected: list[Tensor]) -> None:
    largest = max(float(each.abs().max()) for each in expected[3:])
    for got, wanted in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    for got, wanted in zip(found[3:], expected[3:], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.proof
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_unet_computes_the_same(tiny_model_path: Path, checkpointing: bool) -> None:
    """Guards against a compiled block that computes with the base's weights, a recomputed one that does, and one that
    is compiled anew for each switch between base and adapter and each size of a batch."""
    plain, model = (load(tiny_model_path, compile=each, gradient_checkpointing=checkpointing) for each in (False, True))
    ours, theirs = adapted(model), adapted(plain)
    for count in (3, 2, 1):
        check_close(both(model, ours, count), both(plain, theirs, count))
    known = compilations()
    assert known > 0
    for count in (1, 3, 2):
        check_close(both(model, ours, count), both(plain, theirs, count))
    assert compilations() == known


@pytest.mark.proof
def test_surrogates_on_two_threads(tiny_model_path: Path) -> None:
    """Guards against a trainer that computes a score while its other thread compiles: torch traces in global state."""
    plain, model = load(tiny_model_path), load(tiny_model_path, compile=True)
    settings = SurrogateSettings(trunk="adapter", adapter_rank=2, head_channels=8)
    expected = scores(build_surrogate(plain, settings))
    surrogates = [build_surrogate(model, settings) for _ in range(2)]  # here: initial values are drawn globally
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(scores, surrogates))
    for scores_B, gradient_BCHW in found:
        torch.testing.assert_close(scores_B, expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient_BCHW, expected[1], rtol=1e-3, atol=1e-6)


def scores(surrogate: SurrogateReward) -> tuple[Tensor, Tensor]:
    model = surrogate.model
    latents_BCHW = torch.linspace(-1, 1, 3 * 4 * 8 * 8).reshape(3, *model.latent_shape)
    timesteps_B = torch.tensor([0, 50, 100])
    return score_and_gradient(
        surrogate, latents_BCHW, timesteps_B, torch.zeros_like(latents_BCHW), model.embed(PROMPTS)
    )


@pytest.mark.proof
def test_a_second_process_starts_warm(tiny_model_path: Path, tmp_path: Path) -> None:
    """Guards against a cache that no second process finds: each start of a run would wait for the compiler."""
    environment = os.environ | {"LASRO_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run(
            [sys.executable, "-c", TWICE, str(tiny_model_path)], env=environment, check=True, capture_output=True
        )
        for _ in range(2)
    ]
    cold, warm = (json.loads(run.stdout.splitlines()[-1]) for run in runs)
    assert cold["autograd_cache_miss"] > 0
    assert warm.get("autograd_cache_miss", 0) == 0
    assert any((tmp_path / "compiled").iterdir())


def test_a_network_that_names_no_blocks_is_compiled_whole(tmp_path: Path) -> None:
    """Guards against a setting that does nothing for a family of which diffusers names no repeated blocks."""
    model: Any = load(write_tiny_sana(tmp_path / "sana"))
    compile_network(model.transformer)
    compiled = [part for part in model.transformer.modules() if part._compiled_call_impl is not None]
    assert compiled == [model.transformer]


def test_blocks_that_repeat_are_compiled(tiny_model_path: Path) -> None:
    """Guards against names that are not diffusers' own any more: the whole network would be compiled, for minutes."""
    model: Any = load(tiny_model_path)
    compile_network(model.unet)
    compiled = [type(part).__name__ for part in model.unet.modules() if part._compiled_call_impl is not None]
    assert set(compiled) == {"BasicTransformerBlock"}
    assert all(part._compiled_call_impl is None for part in model.base.modules()), "a view is another module"


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a traceback of a hundred lines, minutes after the run began."""
    monkeypatch.setenv("LASRO_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    with pytest.raises(ModelError, match=r"model\.compile: .*no-such-compiler.*install a C\+\+ compiler") as caught:
        prepare_compiler(torch.device("cpu"))
    assert "\n" not in str(caught.value)
