"""What `make real-size` found: a table and the same as JSON, in files that are named by what was measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.peak_memory import Watched
from lasro_client.doctor.report import by_process

GB = 1e9
NAMES = {
    "lasro_client.cli.main": "client",
    "lasro_surrogate_trainer": "surrogate trainer",
    "lasro_reward_api": "reward API",
    "lasro.reward_sdk": "reward",
    "benchmarks.real_size.stock": "stock diffusers",
    "valkey-server": "Redis",
}
"""Of processes, by what they run."""
MODULES = {"client": "lasro_client.cli.main", "trainer": "lasro_surrogate_trainer"}
"""What the processes run that the doctor knows."""
STAGES = {
    "pretrain": "one round of stage 1",
    "train": "one round of stage 2, evaluations before and after",
    "stock": "one image by stock diffusers with the adapter",
}
FIGURES = ("grad_norm", "loss", "bt_loss", "surrogate_version")
"""Of the round of stage 2."""


def write_report(
    arguments: argparse.Namespace,
    stages: Mapping[str, Watched],
    update: Mapping[str, Any],
    stock: Mapping[str, Any],
    doctor: Mapping[str, Any],
) -> None:
    """Print the table, and write it and the JSON into `arguments.out`."""
    report = {
        "machine": _machine(arguments.device),
        "architecture": "tiny" if arguments.tiny else "SSD-1B, random weights",
        "trainer": "a process of its own" if arguments.separate_trainer else "in the client's process",
        "device": arguments.device,
        "dtype": arguments.dtype,
        "size": arguments.size,
        "settings": arguments.set,
        "stages": {name: watched.as_dict() for name, watched in stages.items()},
        "round": {name: update.get(name) for name in FIGURES},
        "stock": dict(stock),
        "doctor": _doctor(stages, doctor),
    }
    lines = [*_head(report), *_times(stages), *_memory(stages), *_doctor_lines(report["doctor"])]
    name = f"real-size-{arguments.device}-{arguments.size}-{arguments.dtype}"
    name += "-two-processes" * arguments.separate_trainer + "-tiny" * arguments.tiny
    arguments.out.mkdir(parents=True, exist_ok=True)
    path: Path = arguments.out / f"{name}.md"
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(lines), f"\n{path}", sep="\n")


def _machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"device": name, "cores": cores, "torch": torch.__version__, "python": platform.python_version()}


def _doctor(stages: Mapping[str, Watched], doctor: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Computed peak of each process beside what it was in both stages; on GPUs of all processes together.

    Text encoders are there on top of the frozen weights while prompts are embedded, and nothing is computed yet.
    """
    of_runs = [stages[name] for name in ("pretrain", "train")]
    first = doctor["memory"][0]
    embedding = first["program"] + first["weights"] + doctor["text_encoders"]
    computed = {"client": embedding}
    for process, total in by_process(doctor["memory"]):
        computed[process] = max(total, computed.get(process, 0))
    if doctor["device"] == "cuda":
        computed = {"all": sum(computed.values())}
        measured = {"all": max(each.gpu for each in of_runs)}
    else:
        measured = {name: max(each.peaks.get(MODULES[name], 0) for each in of_runs) for name in computed}
    return {
        name: {"computed": total, "measured": measured[name], "ratio": round(measured[name] / total, 3)}
        for name, total in computed.items()
    }


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    machine, seen, of_round = report["machine"], report["stock"], report["round"]
    yield f"# Real size: {report['architecture']}, {report['size']} x {report['size']}, {report['dtype']}"
    yield ""
    yield f"`python -m benchmarks.real_size` on {machine['cores']} core(s) of {machine['device']}, device "
    yield f"{report['device']}, torch {machine['torch']}, trainer {report['trainer']}. Once, seed 0."
    yield ""
    height, width, _ = seen["image"]
    yield f"Adapter: {seen['adapted_layers']} layers in stock diffusers; image {height} x {width}, standard deviation "
    yield f"{seen['pixel_deviation']} of 255. Last update of the generator: gradient norm {of_round['grad_norm']:.4g}."
    yield ""


def _times(stages: Mapping[str, Watched]) -> Iterator[str]:
    yield "| | seconds | of processors |"
    yield "| --- | --- | --- |"
    for name, watched in stages.items():
        yield f"| {STAGES[name]} | {watched.seconds:,.0f} | {watched.cpu_seconds:,.0f} |"
    both = [stages[name] for name in ("pretrain", "train")]
    seconds, cpu = sum(each.seconds for each in both), sum(each.cpu_seconds for each in both)
    yield f"| both rounds | {seconds:,.0f} | {cpu:,.0f} |"
    yield ""


def _memory(stages: Mapping[str, Watched]) -> Iterator[str]:
    yield "Peak of each process (VmHWM), and of all together (PSS, in which a shared page counts once):"
    yield ""
    yield "| | process | peak | when all held most |"
    yield "| --- | --- | --- | --- |"
    for name, watched in stages.items():
        for process in sorted(watched.peaks, key=lambda each: -watched.peaks[each]):
            share = watched.shares.get(process, 0)
            yield f"| {name} | {NAMES.get(process, process)} | {_gb(watched.peaks[process])} | {_gb(share)} |"
        yield f"| {name} | **all together** | | **{_gb(watched.together)}**, {_gb(watched.of_files)} of it of files |"
        if watched.gpu:
            yield f"| {name} | **GPU** | **{_gb(watched.gpu)}** | |"
    yield ""


def _doctor_lines(doctor: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    yield "What `lasro doctor` computes of the same settings, beside the larger of both stages:"
    yield ""
    yield "| process | computed | measured | |"
    yield "| --- | --- | --- | --- |"
    for process, each in doctor.items():
        yield f"| {process} | {_gb(each['computed'])} | {_gb(each['measured'])} | {each['ratio']:.0%} |"


def _gb(count: float) -> str:
    return f"{count / GB:,.2f} GB"
