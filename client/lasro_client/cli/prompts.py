"""`--prompts` of the commands that draw: read and checked before anything is drawn or started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lasro_client.cli.output import stderr

if TYPE_CHECKING:
    from lasro.config import DatasetSettings, ModelSettings
    from lasro.training.prompts import Prompt

FORMATS = "One prompt a line, or .jsonl, .json, .csv or .tsv."
Prompts = Annotated[Path, typer.Option(help=FORMATS, show_default=False)]
Comments = Annotated[bool, typer.Option("--comments", help="Skip lines of --prompts that begin with #.")]


def read_checked_prompts(source: Path | DatasetSettings, comments: bool, model: ModelSettings) -> list[Prompt]:
    """The prompts of a file, or of a run's data set, that this model takes; what the user should know of them goes to
    stderr.

    Raises ConfigError or PromptTooLongError, as `FILE:LINE: ...`.
    """
    from lasro.training.prompts import read_prompt_file, read_prompt_source

    file = read_prompt_file(source, comments) if isinstance(source, Path) else None
    from lasro.training.prompt_checks import check_prompts, fitting  # transformers, once a file is known to be good

    file = file or read_prompt_source(source, fits=fitting(model))

    for note in check_prompts([file], model):
        stderr().print(note, soft_wrap=True, markup=False, highlight=False)
    return file.prompts
