"""One stage of training: a time budget, averaged weights, and going on where it was stopped.

A stage is its networks and a function that gives the loss of a step. Noise and data of a step come from a generator
seeded by the step alone, so a stage that was stopped and goes on from its checkpoint ends where it would have.
"""

from __future__ import annotations

import copy
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor, nn

from lasro.errors import NonFiniteError
from lasro.functional.generator_loss import ema_update
from lasro.models.device import autocast
from tiny_recipe.config import Recipe, StageSettings
from tiny_recipe.networks import load_plain, plain_names
from tiny_recipe.reporting import ProgressLines, Stop, device_name
from tiny_recipe.work_dir import StageProgress, WorkDir

Losses = Callable[[torch.Generator], dict[str, Tensor]]
CHECK_STEPS = 50  # between two looks at the loss: each waits for the device
AVERAGE_RAMP = 20  # steps after which the average looks back at half of them
LARGEST_NORM = 1.0


@dataclass(frozen=True)
class Stage:
    """`losses(generator)` gives scalars of a step, `loss` among them. `target` follows `trained` at `target_decay`."""

    name: str
    settings: StageSettings
    trained: nn.ModuleDict
    losses: Losses
    target: nn.ModuleDict | None = None
    target_decay: float = 0.0


class StageRun:
    """A stage under way on one machine."""

    def __init__(self, stage: Stage, work_dir: WorkDir, device: torch.device, console: Console) -> None:
        self.stage, self.work_dir, self.device, self.console = stage, work_dir, device, console
        self.recipe: Recipe = work_dir.recipe
        self.progress = work_dir.progress(stage.name)
        self.average = copy.deepcopy(stage.trained).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            stage.trained.parameters(),
            lr=stage.settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=stage.settings.weight_decay,
            fused=device.type == "cuda",
        )
        self._warm_from = self._resume()

    def run(self, stop: Stop) -> StageProgress:
        """Train until the schedule ends or `stop` says so, saving now and then; returns how far it is."""
        lines = ProgressLines(self.console, self.stage.name, self.stage.settings, self.progress)
        started, before = time.monotonic(), self.progress
        mark, saved, measured = started, started, {}
        while self.done_share(self.progress) < 1 and not stop.wanted():
            figures = self._step()
            steps = self.progress.steps + 1
            first = steps == before.steps + 1  # compiles, so its time says nothing
            if first or steps % CHECK_STEPS == 0 or self.stage.settings.steps is not None:
                measured = self._finite(figures)
            now = time.monotonic()
            trained_s = self.progress.trained_s + (0.0 if first else now - mark)
            mark = now
            changes = {"steps": steps, "trained_s": trained_s, "wall_s": before.wall_s + now - started}
            self.progress = self.progress.model_copy(update=changes | {"figures": measured})
            lines.update(self.progress, self.done_share(self.progress))
            if now - saved > self.recipe.checkpoint_minutes * 60:
                self._save(finished=False, sessions=before.sessions + 1)
                saved = mark = time.monotonic()
        self._save(self.done_share(self.progress) >= 1, before.sessions + 1)
        return self.progress

    def done_share(self, progress: StageProgress) -> float:
        """How much of its schedule a stage has behind it: by time or by steps, whichever is more."""
        settings = self.stage.settings
        by_time = progress.trained_s / (settings.minutes * 60)
        by_steps = 0.0 if settings.steps is None else progress.steps / settings.steps
        return min(1.0, max(by_time, by_steps))

    def _step(self) -> dict[str, Tensor]:
        settings, steps = self.stage.settings, self.progress.steps
        generator = torch.Generator(self.device).manual_seed(seed_of(self.recipe.seed, self.stage.name, steps))
        warm = min(1.0, (steps - self._warm_from + 1) / settings.warmup_steps)
        falling = 0.5 * (1 + math.cos(math.pi * self.done_share(self.progress)))
        rate = settings.learning_rate * warm * (settings.final_rate + (1 - settings.final_rate) * falling)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with autocast(self.device, "auto"):
            figures = self.stage.losses(generator)
        self.optimiser.zero_grad(set_to_none=True)
        figures["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.stage.trained.parameters(), LARGEST_NORM)
        self.optimiser.step()
        trained = list(self.stage.trained.parameters())
        decay = min(settings.average, (steps + 1) / (steps + AVERAGE_RAMP))
        ema_update(list(self.average.parameters()), trained, decay)
        if self.stage.target is not None:
            ema_update(list(self.stage.target.parameters()), trained, self.stage.target_decay)
        return figures

    def _finite(self, figures: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(value.detach()) for name, value in figures.items()}
        if not all(map(math.isfinite, values.values())):
            raise NonFiniteError(
                f"{self.stage.name} step {self.progress.steps}: got {values}, expected finite numbers; "
                "nothing was saved since; lower its learning_rate or raise its batch_size"
            )
        return values

    def _save(self, finished: bool, sessions: int) -> None:
        for tensor in self.average.state_dict().values():
            if not bool(tensor.isfinite().all()):
                raise NonFiniteError(f"{self.stage.name}: a weight is not finite; lower its learning_rate")
        changes = {"finished": finished, "sessions": sessions, "device": device_name(self.device)}
        self.progress = self.progress.model_copy(update=changes)
        checkpoint = self.work_dir.checkpoint(self.stage.name)
        if finished:
            checkpoint.unlink(missing_ok=True)
        else:
            self.work_dir.save_checkpoint(self.stage.name, self._exact(), self.progress.steps)
        self.work_dir.save(self.stage.name, self.progress, plain_names(self.average))

    def _exact(self) -> dict[str, Tensor]:
        tensors = {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        tensors |= {f"trained.{name}": tensor for name, tensor in self.stage.trained.state_dict().items()}
        if self.stage.target is not None:
            tensors |= {f"target.{name}": tensor for name, tensor in self.stage.target.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
        return tensors

    def _resume(self) -> int:
        """Take up what is there; returns the step from which the learning rate warms up."""
        steps = self.progress.steps
        if steps == 0:
            return 0
        exact = self.work_dir.load_checkpoint(self.stage.name, steps)
        if exact is not None:
            self._restore(exact)
            return 0
        average = self.work_dir.weights(self.stage.name)
        for networks in (self.average, self.stage.trained, self.stage.target):
            if networks is not None:
                load_plain(networks, average)
        return steps

    def _restore(self, exact: dict[str, Tensor]) -> None:
        networks = {"average": self.average, "trained": self.stage.trained, "target": self.stage.target}
        for prefix, module in networks.items():
            if module is not None:
                module.load_state_dict({name: exact[f"{prefix}.{name}"] for name in module.state_dict()})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in exact.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = tensor
        whole = self.optimiser.state_dict()
        self.optimiser.load_state_dict(whole | {"state": moments})


def seed_of(seed: int, stage: str, step: int) -> int:
    """A seed of its own for every step of every stage, the same on every machine."""
    return (zlib.crc32(f"{seed} {stage}".encode()) << 31) + step
