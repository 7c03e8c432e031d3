"""The folder of a run that has ended, with all that an export tells of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lasro.images import png_bytes
from lasro_client.evaluation.result import Evaluation, save_evaluation, summary_table

TRAIN = ["a red | blue circle", "two cats", "a dog on a bench"]
HELD_OUT = ["a green square", "three birds", "a boat", "a | house", "a tree", "a hat"]
GAIN = 0.25


def write_finished_run(folder: Path, model: Path, **model_settings: Any) -> Path:
    """A run of stage 2 on the model of that folder, without its adapter; returns the run's folder."""
    folder.mkdir(parents=True)
    prompts = {"train": TRAIN, "held_out": HELD_OUT}
    for name, lines in prompts.items():
        (folder.parent / f"{name}.txt").write_text("\n".join(lines) + "\n")
    config = {
        "stage": "train",
        "name": "sharp",
        "seed": 3,
        "model": {"path": str(model), "revision": None, "guidance": 8.0, **model_settings},
        "prompts": {name: str(folder.parent / f"{name}.txt") for name in prompts} | {"comments": False},
        "rewards": [{"name": "sharpness", "weight": 2.0, "floor": None}, {"name": "safe", "weight": 1.0, "floor": 0.5}],
        "objective": {"combine": "sum"},
        "train": {"timesteps": None, "learning_rate": 0.0003},
    }
    (folder / "config.json").write_text(json.dumps(config))
    evaluations = {"before": _evaluation(0.0), "after": _evaluation(GAIN)}
    for which, shade in (("before", 60), ("after", 200)):
        save_evaluation(folder / "evaluation" / f"{which}.json", evaluations[which])
        for steps in ("one", "two"):
            (folder / "evaluation" / which / steps).mkdir(parents=True)
            for index in range(len(HELD_OUT)):
                image = np.full((16, 16, 3), shade, np.uint8)
                (folder / "evaluation" / which / steps / f"{index:05d}.png").write_bytes(png_bytes(image))
    distance = {"distance": {"mean": 0.31, "sem": 0.02, "n": 6}}
    summary = {
        "run": "sharp",
        "prompts": len(HELD_OUT),
        "rewards": summary_table(evaluations["before"], evaluations["after"]),
        "held_out_drift": {"one_step": distance, "two_step": distance},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def _evaluation(shift: float) -> Evaluation:
    scores: list[float | None] = [index / 10 + shift for index in range(len(HELD_OUT))]
    rewards = {name: {1: scores, 2: scores} for name in ("sharpness", "safe")}
    return Evaluation(prompts=HELD_OUT, seed=10_000, rewards=rewards)
