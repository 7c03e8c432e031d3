"""The prompts of a run, read and checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lasro.config import DatasetSettings, PromptSource, RunSettings
from lasro.training.distributed import DistributedContext
from lasro.training.prompt_checks import check_lengths, check_prompts, shared_prompts
from lasro.training.prompts import PromptFile, read_prompt_file
from lasro_client.run.frozen_prompts import FrozenPrompts, freeze


class RunPrompts(NamedTuple):
    """What `[prompts]` names; `drift` is None where drift is not measured."""

    train: PromptFile
    held_out: PromptFile
    drift: PromptFile | None

    def check(self, config: RunSettings) -> list[str]:
        """What the user should know of them; raises as `check_prompts` for what cannot be drawn or scored."""
        measured = [file for file in (self.held_out, self.drift) if file is not None]
        notes = check_prompts([self.train, *measured], config.model)
        if config.surrogate.backbone is not None:
            check_lengths([self.train, *measured], config.surrogate_run.trunk_model)
        return notes + [note for file in measured for note in shared_prompts(file, self.train)]


def read_run_prompts(config: RunSettings, folder: Path, peers: DistributedContext) -> RunPrompts:
    """Read the prompt files, and what the run in `folder` takes from data sets, which it keeps. All processes call it;
    the main one reads data sets for all.

    Raises ConfigError, as `FILE:LINE: ...` where a line is to blame.
    """

    def read(role: str, source: PromptSource) -> PromptFile:
        if not isinstance(source, DatasetSettings):
            return read_prompt_file(source, config.prompts.comments)
        frozen = peers.on_main_and_broadcast(lambda: freeze(folder, role, source, config.model), FrozenPrompts)
        return frozen.as_file(folder, role)

    settings = config.prompts
    train, held_out = read("train", settings.train), read("held_out", settings.held_out)
    if settings.drift is None or config.evaluation.drift_prompts == 0:
        return RunPrompts(train, held_out, None)
    return RunPrompts(train, held_out, read("drift", settings.drift))
