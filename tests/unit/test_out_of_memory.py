"""Memory that runs out, wherever it does: one line that says what to lower there. The exhaustion is made up, each
boundary is the real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lasro.config import ModelSettings, SamplingSettings, SurrogateSettings
from lasro.errors import DeviceMemoryError
from lasro.functional.reward_totals import RewardObjective
from lasro.models.device import device_memory
from lasro.models.frozen import FrozenModel
from lasro.models.registry import load_model
from lasro.models.surrogate import SurrogateReward, build_surrogate
from lasro.models.unet_generator import UNetGenerator
from lasro.training.prompts import Prompt
from lasro.training.ranking import Ranker
from lasro.training.replay_buffer import ReplayGroup
from lasro.training.sampling import sample_groups
from lasro.training.surrogate_trainer import SurrogateTrainer
from lasro_client.cli import main
from lasro_client.evaluation.drift import measure_drift
from lasro_client.evaluation.generate import draw
from lasro_client.evaluation.score_prompts import draw_in_steps
from lasro_client.run.base_sample_rewards import GroupRewards, RewardedSeeds, draw_again
from lasro_surrogate_trainer.published_surrogate import PublishedSurrogate
from lasro_surrogate_trainer.readiness import ReadinessProbe
from lasro_surrogate_trainer.store import RunStore

PROMPT = Prompt(text="a red circle")
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB in all.")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
DRIVER = RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
LIBRARY = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
NUMPY = MemoryError("Unable to allocate 71.1 PiB for an array")


@pytest.fixture
def model(tiny_model_path: Path) -> UNetGenerator:
    found = load_model(ModelSettings(path=str(tiny_model_path), device="cpu"))
    assert isinstance(found, UNetGenerator)
    return found


def surrogate_of(model: UNetGenerator, tmp_path: Path) -> PublishedSurrogate:
    settings = SurrogateSettings(trunk="adapter", adapter_rank=2, head_channels=8)
    store = RunStore(tmp_path, "run", 2, 60)
    state = build_surrogate(model, settings).trained_state()
    store.publish(0, {name: t.numpy() for name, t in state.items()}, {"version": "0", "steps": "0"})
    return PublishedSurrogate(FrozenModel(model), settings, store)


def latents(count: int) -> np.ndarray:
    return np.zeros((count, 4, 8, 8), np.float32)


def sampled(model: UNetGenerator, tmp_path: Path) -> None:
    sample_groups(model, [PROMPT], SamplingSettings(prompts_per_round=1, seeds_per_prompt=2), 0)


def drifted(model: UNetGenerator, tmp_path: Path) -> None:
    measure_drift(model, [PROMPT], 0, tmp_path)


def drawn_again(model: UNetGenerator, tmp_path: Path) -> None:
    group = GroupRewards(prompt=PROMPT.text, rewards={"r": [0.0, 1.0, 0.0, 1.0]})
    list(draw_again(model, [RewardedSeeds((0,), 2, group)]))


def gradients(model: UNetGenerator, tmp_path: Path) -> None:
    published = surrogate_of(model, tmp_path)
    published.gradient(latents(40), np.zeros(40, np.int64), latents(40), [PROMPT.text] * 40, 0)


def ranked(model: UNetGenerator, tmp_path: Path) -> None:
    settings = SurrogateSettings(trunk="adapter", adapter_rank=2, head_channels=8)
    trainer = SurrogateTrainer(model, settings, RewardObjective({"r": 1.0}))
    group = ReplayGroup("id", 0, 0, PROMPT.text, np.array([1, 1]), {"r": np.array([0.0, 1.0])}, latents(2))
    trainer.rank([group], Ranker(settings, RewardObjective({"r": 1.0}), {}, margin=0.02))


WHERE: dict[str, tuple[str, Callable[[UNetGenerator, Path], Any], str]] = {
    "sampling": ("unet", sampled, "drawing 1 prompts x 2 seeds: .*; lower prompts_per_round or seeds_per_prompt"),
    "its images": ("vae.decoder", sampled, "decoding 4 images at once: .*; lower model.max_batch"),
    "prompts": ("text_encoder", lambda m, _: m.embed(["not embedded yet"]), "embedding a prompt: .*; set model.dtype"),
    "encoding": ("vae.encoder", lambda m, _: m.encode(np.zeros((6, 16, 16, 3), np.uint8)), "encoding 4 images at once"),
    "generate": ("unet", lambda m, _: draw(m, [PROMPT.text], [0], 2), "drawing 1 images at once: .*; lower model.max_"),
    "evaluation": ("unet", lambda m, _: draw_in_steps(m, ["a"] * 3, [1, 2, 3]), "drawing 3 images at once"),
    "drift": ("unet", drifted, "drawing 1 images at once: .*; lower model.max_batch"),
    "base samples": ("base", drawn_again, "drawing 2 base samples again: .*; lower train.carried_seeds"),
    "gradients": ("base.mid_block", gradients, "surrogate scores of 40 samples, 32 at once: .*; send fewer than 32"),
    "scores": (
        "base.mid_block",
        lambda m, path: surrogate_of(m, path).check(0),
        "surrogate scores of 1 samples, 1 at once: .*serve_autocast",
    ),
    "readiness": (
        "base.mid_block",
        lambda m, _: ReadinessProbe(FrozenModel(m)).check(),
        "a forward pass of LASRO_PROBE_MODEL: .*",
    ),
    "ranking": ("base.mid_block", ranked, "scores of a group of 2 samples: .*; lower seeds_per_prompt"),
}


@pytest.mark.parametrize("boundary", WHERE)
def test_the_line_says_what_to_lower_there(
    model: UNetGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boundary: str
) -> None:
    """Bug: only updates said what to lower; anywhere else memory ran out with a traceback."""
    name, task, message = WHERE[boundary]
    model.prompt_encoder.encoders.load()  # else others take their place once they are needed
    part: Any = model if name == "base" or name.startswith("base.") else model.pipeline
    for step in name.split("."):
        part = getattr(part, step)

    def exhausted(*_: object, **__: object) -> None:
        raise CUDA

    monkeypatch.setattr(part, "forward", exhausted)
    with pytest.raises(DeviceMemoryError, match=f"^{message}") as refusal:
        task(model, tmp_path)
    assert "CUDA out of memory;" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CUDA, "CUDA out of memory;"),
        (CPU, "you tried to allocate 4000000000000 bytes;"),
        (DRIVER, "CUDA error: out of memory"),
        (LIBRARY, "CUBLAS_STATUS_ALLOC_FAILED"),
        (NUMPY, "Unable to allocate 71.1 PiB for an array;"),
        (MemoryError(), "task: out of memory; advice"),
    ],
    ids=["CUDA", "CPU", "driver", "library", "numpy", "Python"],
)
def test_every_kind_of_exhaustion_is_known(error: Exception, reason: str) -> None:
    """Bug: only CUDA's allocator was known; the CPU's says it in a RuntimeError."""
    with pytest.raises(DeviceMemoryError) as refusal, device_memory("task", "advice"):
        raise error
    assert reason in str(refusal.value)
    with pytest.raises(DeviceMemoryError, match=r"^task"), device_memory("outer", "x"), device_memory("task", "advice"):
        raise error


def test_other_errors_pass(tiny_model_path: Path) -> None:
    """Guards against a mistake in the code that is reported as a lack of memory."""
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2"), device_memory("task", "advice"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_a_command_ends_with_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Bug: memory that ran out where nothing knows what to lower was a traceback."""

    def exhausted() -> None:
        raise NUMPY

    monkeypatch.setattr(main, "app", exhausted)
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("lasro: out of memory (Unable to allocate 71.1 PiB for an array); end")


def test_loading_and_building_say_it_too(
    tiny_model_path: Path, model: UNetGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a model too large for the device was "cannot be loaded", as if its folder were broken."""

    def exhausted(*_: object, **__: object) -> None:
        raise CPU

    monkeypatch.setattr(SurrogateReward, "to", exhausted)
    with pytest.raises(
        DeviceMemoryError, match=r'a surrogate with trunk = "full": .*; set surrogate\.trunk = "adapter"'
    ):
        build_surrogate(model, SurrogateSettings(trunk="full"))
    monkeypatch.setattr(type(model.pipeline), "to", exhausted)
    with pytest.raises(DeviceMemoryError, match=r"^loading model\.path .*; set model\.dtype"):
        load_model(ModelSettings(path=str(tiny_model_path), device="cpu"))
