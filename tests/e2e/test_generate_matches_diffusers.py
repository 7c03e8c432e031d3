"""`generate` against the stock pipeline, on the bundled model."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from PIL import Image

from lasro.config import LoraSettings, ModelSettings
from lasro.errors import ConflictError, PromptTooLongError
from lasro.models.adapter_file import ADAPTER_FILE
from lasro.models.adapter_notes import note_timesteps
from lasro.models.registry import load_model
from lasro.training.prompts import Prompt
from lasro_client.evaluation.generate import generate

BUNDLED = files("lasro").joinpath("assets/tiny-sdxl-lcm")
SEED = 41
LARGEST_DIFFERENCE = 2  # of 255
PROMPTS = [
    Prompt("a red circle and a blue star on a white background", {"n": 1}),
    Prompt("dog face, noto style"),
    Prompt("a green square and a yellow triangle on a sky background"),
]
STEPS = [1, 2, 4]
TIMESTEPS = (999, 299)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter far from zero, with alpha different from the rank."""
    folder = tmp_path_factory.mktemp("adapter")
    settings = LoraSettings(rank=4, alpha=12.0)
    model = load_model(ModelSettings(device="cpu"))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.add_lora(settings, seed=0):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
    model.save_lora(folder, settings)
    return folder


@pytest.fixture(scope="module")
def stock(adapter: Path) -> dict[tuple[bool, int], list[np.ndarray]]:
    """Images of the stock pipeline, one prompt per call, without and with the adapter."""
    pipeline, images = stock_pipeline(), {}
    for with_adapter in (False, True):
        if with_adapter:
            pipeline.load_lora_weights(adapter)
        for steps in STEPS:
            images[with_adapter, steps] = stock_images(pipeline, PROMPTS, num_inference_steps=steps)
    return images


def stock_pipeline() -> Any:
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(str(BUNDLED), dtype=torch.float32, add_watermarker=False)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_images(pipeline: Any, prompts: list[Prompt], **steps: Any) -> list[np.ndarray]:
    return [
        pipeline(
            prompt.text,
            guidance_scale=4.0,
            generator=torch.Generator("cpu").manual_seed(SEED + index),
            output_type="np",
            **steps,
        ).images[0]
        for index, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize(
    ("with_adapter", "batch", "steps"),
    [
        (False, None, 1),
        (False, None, 2),
        (False, None, 4),
        (False, 2, 2),
        (True, None, 1),
        (True, None, 2),
        (True, None, 4),
        (True, 1, 2),
    ],
)
def test_same_pixels(
    stock: dict[tuple[bool, int], list[np.ndarray]],
    adapter: Path,
    tmp_path: Path,
    with_adapter: bool,
    batch: int | None,
    steps: int,
) -> None:
    """Noise drawn in another order, another schedule, a lost lora_alpha, or batching changed the image."""
    chosen = adapter if with_adapter else None
    generate(ModelSettings(device="cpu"), chosen, PROMPTS, SEED, steps, tmp_path / "out", batch)
    for index, expected in enumerate(stock[with_adapter, steps]):
        ours = np.asarray(Image.open(tmp_path / "out" / f"{index:05d}.png"), dtype=float)
        assert np.abs(ours - (expected * 255).round()).max() <= LARGEST_DIFFERENCE


@pytest.mark.parametrize("with_adapter", [pytest.param(False, marks=pytest.mark.proof), True])
def test_same_pixels_at_the_timesteps_that_were_chosen(adapter: Path, tmp_path: Path, with_adapter: bool) -> None:
    """What was trained for a second timestep of its own was drawn otherwise by `pipeline(prompt, timesteps=...)`, or
    the note about them kept stock from loading the adapter."""
    chosen = adapter if with_adapter else None
    note_timesteps(adapter / ADAPTER_FILE, TIMESTEPS)
    pipeline = stock_pipeline()
    if with_adapter:
        pipeline.load_lora_weights(adapter)
    prompts, one_step = PROMPTS[:2], TIMESTEPS[:1]
    for timesteps in (one_step, TIMESTEPS):
        settings = ModelSettings(device="cpu", timesteps=TIMESTEPS)
        generate(settings, chosen, prompts, SEED, 1 if timesteps == one_step else 2, tmp_path)
        for index, expected in enumerate(stock_images(pipeline, prompts, timesteps=list(timesteps))):
            ours = np.asarray(Image.open(tmp_path / f"{index:05d}.png"), dtype=float)
            assert np.abs(ours - (expected * 255).round()).max() <= LARGEST_DIFFERENCE


def test_adapter_matters(stock: dict[tuple[bool, int], list[np.ndarray]]) -> None:
    """The parity test above would pass with an adapter that nobody applies."""
    assert np.abs(stock[True, 2][0] - stock[False, 2][0]).max() > 0.05


def test_index_and_replacement(tmp_path: Path) -> None:
    """Images of an earlier, longer call stayed beside the new ones, or the index lost seeds or metadata."""
    settings, out = ModelSettings(device="cpu"), tmp_path / "out"
    generate(settings, None, PROMPTS, 0, 1, out)
    generate(settings, None, PROMPTS[:1], 5, 2, out)
    assert sorted(path.name for path in out.iterdir()) == ["00000.png", "index.json"]
    index = json.loads((out / "index.json").read_text())
    image = {"file": "00000.png", "seed": 5, "steps": 2, "guidance": 4.0, "metadata": {"n": 1}}
    assert index == {"model": "bundled", "adapter": None, "images": [{**image, "prompt": PROMPTS[0].text}]}


def test_nothing_is_written_for_bad_input(tmp_path: Path) -> None:
    """A prompt over the token limit left half a folder, or a folder of somebody else's files was overwritten."""
    settings = ModelSettings(device="cpu")
    with pytest.raises(PromptTooLongError):
        generate(settings, None, [PROMPTS[0], Prompt("star " * 100)], 0, 1, tmp_path / "out", batch=1)
    assert not (tmp_path / "out").exists()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConflictError, match=r"notes\.txt"):
        generate(settings, None, PROMPTS, 0, 1, tmp_path)
