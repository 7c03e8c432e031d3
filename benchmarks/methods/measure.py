"""What a run's adapter gains and how far it drifts, on every set of prompts; and its pictures of the first of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.frontier.held_out import HeldOut, Images, PromptSplit
from benchmarks.methods.plan import Run
from benchmarks.methods.prompts import HELD_OUT, PROMPT_SETS, TUNING
from lasro.config import ModelSettings
from lasro.files import write_atomically
from lasro.images import png_bytes
from lasro.models.registry import load_model
from lasro.num_steps import ONE_AND_TWO
from lasro.reward_function import load_reward
from lasro_client.evaluation.adapted_model import load_adapted

SHOWN = 4
"""Prompts of the pictures."""
BASE_FOLDER = "base"


class Measurer:
    """Of one benchmark: what the base draws is drawn once for each reward and set of prompts."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._held_out: dict[tuple[str, str], HeldOut] = {}

    def measure(self, run: Run) -> dict[str, Any]:
        """By set of prompts and number of steps; writes the pictures of held-out prompts to the folder of the run."""
        model, _ = load_adapted(ModelSettings(), self.out / run.folder / "run" / "adapter", partial=False)
        sets = PROMPT_SETS[run.reward.prompts]()
        found: dict[str, Any] = {}
        for name, prompts in ({TUNING: sets.tuning} if run.is_tuning else sets.measured).items():
            held_out = self._base(run, name, PromptSplit([], prompts[: run.scale.prompts], noises=2))
            drawn = held_out.draw(model)
            found[name] = {str(steps): one.as_dict() for steps, one in held_out.compare(drawn).items()}
            if name == HELD_OUT:
                save_strips(self.out / run.folder, drawn[0])
        return found

    def _base(self, run: Run, name: str, split: PromptSplit) -> HeldOut:
        key = run.reward.name, name
        if key not in self._held_out:
            self._held_out[key] = HeldOut(load_model(ModelSettings()), load_reward(run.reward.serve), split)
            if name == HELD_OUT:
                save_strips(self.out / run.reward.name / BASE_FOLDER, self._held_out[key].base)
        return self._held_out[key]


def save_strips(folder: Path, drawn: Images) -> None:
    """The first prompts side by side, a file for each number of steps."""
    for steps in ONE_AND_TWO:
        write_atomically(strip_file(folder, steps), png_bytes(np.concatenate(drawn[steps][:SHOWN], axis=1)))


def strip_file(folder: Path, steps: int) -> Path:
    return folder / f"pictures-{steps}.png"
