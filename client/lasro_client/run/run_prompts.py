"""The prompts of a run, read and checked before anything starts."""

from __future__ import annotations

from typing import NamedTuple

from lasro.config import RunSettings
from lasro.training.prompt_checks import check_prompts, shared_prompts
from lasro.training.prompts import PromptFile, read_prompt_file


class RunPrompts(NamedTuple):
    """The files that `[prompts]` names; `drift` is None where drift is not measured."""

    train: PromptFile
    held_out: PromptFile
    drift: PromptFile | None

    def check(self, config: RunSettings) -> list[str]:
        """What the user should know of them; raises as `check_prompts` for what cannot be drawn or scored."""
        measured = [file for file in (self.held_out, self.drift) if file is not None]
        notes = check_prompts([self.train, *measured], config.model)
        return notes + [note for file in measured for note in shared_prompts(file, self.train)]


def read_run_prompts(config: RunSettings) -> RunPrompts:
    """Read the prompt files; raises ConfigError, as `FILE:LINE: ...` where a line is to blame."""
    settings = config.prompts
    train, held_out = (read_prompt_file(path, settings.comments) for path in (settings.train, settings.held_out))
    if settings.drift is None or config.evaluation.drift_prompts == 0:
        return RunPrompts(train, held_out, None)
    return RunPrompts(train, held_out, read_prompt_file(settings.drift, settings.comments))
