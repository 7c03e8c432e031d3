"""Images per second beside diffusers' own pipeline, with the model's VAE and with a tiny one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.figures import Figure, Recorder, in_turns, memory_figure, per_second
from benchmarks.gpu.plain import stock_pipeline
from benchmarks.gpu.sizes import PROMPTS, Sizes, run_settings
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.training.sampling import draw_noises, generator_for, sample_latents

STOCK = "diffusers' pipeline"
WANTED = {(2, False): 2.0, (2, True): 4.0}
"""Times the pipeline's images per second at two steps; with a tiny VAE."""


def sampling(sizes: Sizes, folder: Path, recorder: Recorder) -> None:
    """Both draw the same batch to uint8 or float images in the host's memory. Ours keeps embeddings of prompts."""
    model = load_model(run_settings(sizes, folder, {"tiny_vae": str(folder / "tiny_vae")}).model)
    pipeline = stock_pipeline(folder / "model", getattr(torch, sizes.dtype), model.device)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(sizes.batch)]
    cases = [(2, False), (2, True), (1, False), (1, True)]
    for part, (num_steps, tiny) in zip(recorder.parts(len(cases)), cases, strict=True):
        stock = partial(draw_stock, pipeline, prompts, num_steps)
        turns = in_turns(part, model.device, partial(draw, model, prompts, num_steps, tiny), stock)
        name = f"images, {'one step' if num_steps == 1 else 'two steps'}{', tiny VAE' if tiny else ''}"
        rates = [per_second(sizes.batch, each) for each in (turns.ours, turns.baseline)]
        recorder.add(Figure(name, "images/s", rates[0], STOCK, rates[1], at_least=WANTED.get((num_steps, tiny))))
        if (memory := memory_figure(name, turns, STOCK)) is not None:
            recorder.add(memory)


@torch.no_grad()
def draw(model: GeneratorModel, prompts: list[str], num_steps: int, tiny: bool) -> None:
    """As a round draws what is scored."""
    noises = draw_noises(model, len(prompts), generator_for(0), num_steps)
    latents_BCHW = sample_latents(model, noises, model.embed(prompts))[-1]
    model.decode_to_score(latents_BCHW) if tiny else model.decode(latents_BCHW, mixed=True)


def draw_stock(pipeline: Any, prompts: list[str], num_steps: int) -> None:
    """As the model's card says."""
    generator = torch.Generator("cpu").manual_seed(0)
    pipeline(prompts, num_inference_steps=num_steps, guidance_scale=8.0, generator=generator, output_type="np")
