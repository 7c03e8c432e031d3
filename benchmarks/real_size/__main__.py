"""`python -m benchmarks.real_size`: a model of SSD-1B's size through both stages and into stock diffusers.

The architecture is the true one, the weights are random (`benchmarks/random_weights.py`): what is measured is memory
and time, not pictures. One round of stage 1 and one of stage 2 (`run.toml`) by the command line, over the real
services, then one image by stock diffusers with the adapter. Beside it, what `lasro doctor` computes of the settings.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peak_memory import Watched, watch
from benchmarks.random_weights import write_model
from benchmarks.real_size.report import write_report

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).parent / "run.toml"
LEAST_FREE_BYTES = 1 << 30
"""Left to the machine: what wants more is ended."""
LASRO = (sys.executable, "-m", "lasro_client.cli.main")


class Parts(NamedTuple):
    """What was measured."""

    stages: dict[str, Watched]
    """By command: pretrain, train, stock."""
    update: dict[str, Any]
    """Of the last round's generator updates."""
    stock: dict[str, Any]
    """What stock diffusers saw."""
    doctor: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side")
    parser.add_argument("--tiny", action="store_true", help="a tiny architecture, to see that everything runs")
    parser.add_argument(
        "--separate-trainer", action="store_true", help="the trainer as a process, which loads it again"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of the run")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "real-size", help="for the model and the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="for the table and the JSON")
    arguments = parser.parse_args()
    parts = measure(arguments)
    write_report(arguments, parts.stages, parts.update, parts.stock, parts.doctor)


def measure(arguments: argparse.Namespace) -> Parts:
    """Make the model, and do it all."""
    work = arguments.work.resolve()
    architecture = "tiny-sdxl" if arguments.tiny else "ssd-1b"
    model = work / f"{architecture}-{arguments.dtype}"
    if not model.exists():
        begun = work / f"{model.name}.begun"
        write_model(architecture, begun, arguments.dtype).rename(model)  # what is written so far is not whole
    settings, runs = _settings(arguments, model), work / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    # Prompts are embedded as on the first day: with text encoders that have to be read.
    environment = os.environ | {"LASRO_CACHE_DIR": str(runs / "cache"), "PYTHONPATH": _import_path()}
    doctor = subprocess.run(
        [*LASRO, "doctor", "--config", str(CONFIG), *settings, "--no-run", "--json"],
        env=environment, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    stages: dict[str, Watched] = {}

    def do(name: str, command: Sequence[str], **options: Any) -> None:
        stages[name] = watch(command, LEAST_FREE_BYTES, env=environment, **options)
        if stages[name].status != 0:
            sys.exit(f"real size: {name} ended with status {stages[name].status}; see above")

    for name in ("pretrain", "train"):
        do(name, [*LASRO, name, str(CONFIG), "--out", str(runs / name), *settings])
        settings += ["--set", f"train.initial_surrogate={runs}/pretrain/surrogate.safetensors"]
    command = ("benchmarks.real_size.stock", str(model), str(runs / "train" / "adapter"))
    with (runs / "stock.json").open("w") as seen:
        given = (str(arguments.size), arguments.device, arguments.dtype)
        do("stock", [sys.executable, "-m", *command, *given], stdout=seen)
    update = json.loads((runs / "train" / "log.jsonl").read_text().splitlines()[-1])
    return Parts(stages, update, json.loads((runs / "stock.json").read_text()), json.loads(doctor.stdout))


def _settings(arguments: argparse.Namespace, model: Path) -> list[str]:
    chosen = {
        "model.path": model,
        "model.device": arguments.device,
        "surrogate.device": arguments.device,
        "model.dtype": arguments.dtype,
        "model.height": arguments.size,
        "model.width": arguments.size,
        "services.in_process_trainer": str(not arguments.separate_trainer).lower(),
    }
    pairs = [*(f"{key}={value}" for key, value in chosen.items()), *arguments.set]
    return [part for pair in pairs for part in ("--set", pair)]


def _import_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


if __name__ == "__main__":
    main()
