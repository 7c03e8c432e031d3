"""`python -m benchmarks.real_size.stock MODEL ADAPTER SIZE DEVICE DTYPE`: the adapter in stock diffusers, one image.

Prints what it saw as one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lasro.models.quiet  # noqa: F401  (before diffusers)

# isort: split

from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline


def main(model: str, adapter: str, size: str, device: str, dtype: str) -> None:
    """Draw with the adapter."""
    started = time.monotonic()
    kind: Any = StableDiffusionXLPipeline
    pipeline = kind.from_pretrained(model, dtype=getattr(torch, dtype)).to(device)
    pipeline.load_lora_weights(adapter)
    layers = sum(name.endswith("lora_A.default_0.weight") for name, _ in pipeline.unet.named_parameters())
    prompt = (Path(__file__).parent / "prompts.txt").read_text().strip()
    noise = torch.Generator("cpu").manual_seed(0)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        prompt, num_inference_steps=2, guidance_scale=4.0, height=int(size), width=int(size), generator=noise
    ).images[0]
    pixels = np.asarray(image)
    seen = {
        "adapted_layers": layers,
        "image": list(pixels.shape),
        "pixel_deviation": round(float(pixels.std()), 2),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
