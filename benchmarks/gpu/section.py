"""`python -m benchmarks.gpu.section NAME FOLDER RECORDS SECONDS [--tiny]`: one section, in a process of its own.

What runs out of memory here, or is killed, takes nothing else with it.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lasro.models.quiet  # noqa: F401  (before diffusers)

# isort: split

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

from benchmarks.gpu.figures import Recorder
from benchmarks.gpu.memory import memory
from benchmarks.gpu.sampling import sampling
from benchmarks.gpu.services import gradient_and_weights, loop
from benchmarks.gpu.sizes import FULL, TINY, Sizes
from benchmarks.gpu.training import surrogate_step, update
from benchmarks.random_weights import write_model, write_network
from lasro.errors import LasroError, ModelError

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate")


def models(sizes: Sizes, folder: Path, recorder: Recorder) -> None:
    """Write what the other sections load, and say where they run."""
    if sizes is FULL and not torch.cuda.is_available():
        raise ModelError("no GPU that torch sees; --tiny is a smoke test without one")
    recorder.machine(machine())
    write_model(sizes.model, folder / "model", sizes.dtype)
    write_network(AutoencoderTiny, sizes.tiny_vae, folder / "tiny_vae", sizes.dtype)


def machine() -> dict[str, Any]:
    """The device, and the versions that computed."""
    gpu = torch.cuda.is_available()
    found = {name: version(name) for name in PACKAGES}
    return {
        "device": torch.cuda.get_device_name()
        if gpu
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "gpu": gpu,
        "memory_gb": torch.cuda.mem_get_info()[1] / 1e9 if gpu else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    } | found


SECTIONS: dict[str, Callable[[Sizes, Path, Recorder], None]] = {
    "models": models,
    "sampling": sampling,
    "update": update,
    "gradient": gradient_and_weights,
    "memory-0": partial(memory, number=0),
    "loop": loop,
    "surrogate": surrogate_step,
    "memory-1": partial(memory, number=1),
    "memory-2": partial(memory, number=2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=SECTIONS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    recorder = Recorder(given.records, given.seconds)
    try:
        SECTIONS[given.name](TINY if given.tiny else FULL, given.folder, recorder)
    except LasroError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
