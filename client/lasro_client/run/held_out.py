"""The held-out prompts of a stage-2 run: evaluated before and after, and drawn now and then in between."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from lasro.files import write_atomically, write_json
from lasro.images import png_bytes
from lasro.models.base import GeneratorModel
from lasro.models.lora import parameters_set
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.prompts import Prompt
from lasro_client.evaluation.drift import BaseImages, draw_base, measure_drift, measure_held_out_drift, stored_base
from lasro_client.evaluation.num_steps import by_name
from lasro_client.evaluation.result import Evaluation, load_evaluation, save_evaluation
from lasro_client.evaluation.score_prompts import draw_in_steps, evaluate
from lasro_client.run.folder import RunFolder
from lasro_client.run.observer import Observer
from lasro_client.services.reward_client import RewardClient

PROGRESS_PROMPTS = 8
MOVEMENT_PROMPTS = 64
"""By which what is exported is kept to the drift budget."""


class HeldOut:
    """The first `evaluation.prompts` held-out and `evaluation.drift_prompts` drift prompts, for the main process.

    All files go to the run folder.
    """

    def __init__(
        self,
        folder: RunFolder,
        model: GeneratorModel,
        prompts: list[Prompt],
        drift_prompts: list[Prompt],
        client: RewardClient,
        observer: Observer,
    ) -> None:
        self._folder, self._model, self._client, self._observer = folder, model, client, observer
        self._settings, self._steps = folder.config.evaluation, folder.config.train.steps
        self.prompts = prompts[: self._settings.prompts]
        self._drift_prompts = drift_prompts[: self._settings.drift_prompts]
        self.rewards = list(dict.fromkeys([*folder.config.weights, *self._settings.rewards]))

    @cached_property
    def base_images(self) -> BaseImages:
        """The base's images of the first held-out prompts: those of its evaluation, drawn again where one is gone."""
        prompts, seed = self.prompts[:MOVEMENT_PROMPTS], self._settings.seed
        try:
            return stored_base(self._model, prompts, seed, self._folder.path / "evaluation" / "before", self._steps)
        except FileNotFoundError:
            return draw_base(self._model, prompts, seed, self._steps)

    def evaluate_base(self) -> Evaluation:
        """Rewards of the base, read back where an earlier life of the run has measured them, all that may be scored."""
        path = self._path("before")
        known = load_evaluation(path) if path.exists() else None
        if known is None or known.unscored or known.may_improve or known.steps != self._steps:
            return self._evaluate("before")
        return known

    def evaluate_adapted(self) -> Evaluation:
        """Rewards of the model with the weights that its adapter has now."""
        return self._evaluate("after")

    def _evaluate(self, name: str) -> Evaluation:
        """Raises RewardError, and keeps nothing, where a reward scored none of the images."""
        folder, is_base = self._folder.path / "evaluation" / name, name == "before"
        self._observer.activity(f"evaluating {name} on {len(self.prompts)} held-out prompts")
        evaluation = evaluate(
            self._model,
            self.prompts,
            self.rewards,
            self._client,
            self._settings.seed,
            folder,
            base=is_base,
            steps=self._steps,
        )
        self._observer.activity(None)
        evaluation.check_scored()
        if evaluation.errors:
            self._observer.note(f"evaluation {name}: {evaluation.describe_failures()}")
        save_evaluation(self._path(name), evaluation)
        self._observer.folder_updated()
        return evaluation

    def _path(self, name: str) -> Path:
        return self._folder.path / "evaluation" / f"{name}.json"

    def measure_drift(self) -> dict[str, Any] | None:
        """Contents of drift.json; None where the settings name no prompts for it."""
        if not self._drift_prompts:
            return None
        seed, folder = self._settings.seed, self._folder.path / "drift"
        drift = measure_drift(self._model, self._drift_prompts, seed, folder, max(self._steps)).as_dict()
        write_json(self._folder.path / "drift.json", drift)
        return drift

    def measure_held_out_drift(self) -> dict[str, Any] | None:
        """`held_out_drift` of summary.json, of the images of both evaluations; None where one of them is gone."""
        folder = self._folder.path / "evaluation"
        try:
            found = measure_held_out_drift(self._model, self.prompts, self._settings.seed, folder, self._steps)
        except FileNotFoundError as error:
            self._observer.note(f"{error.filename} is gone, so the drift on held-out prompts was not measured")
            return None
        return {name: drift.both() for name, drift in by_name(found).items()}

    def draw_progress(self, trainer: GeneratorTrainer, round: int) -> None:
        """Draw the first prompts in the most steps with the averaged weights, to progress/ROUND/INDEX.png."""
        prompts = [prompt.text for prompt in self.prompts[:PROGRESS_PROMPTS]]
        seeds, most = range(self._settings.seed, self._settings.seed + len(prompts)), max(self._steps)
        with parameters_set(trainer.parameters, trainer.average):
            images = draw_in_steps(trainer.model, prompts, seeds, steps=[most])[most]
        folder = self._folder.path / "progress"
        for index, image in enumerate(images):
            write_atomically(folder / f"{round:05d}" / f"{index}.png", png_bytes(image))
        write_json(folder / "prompts.json", prompts)
        self._observer.folder_updated()
