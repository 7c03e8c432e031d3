"""What the command line prints: results to stdout, all else to stderr. Imports rich only when used."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lasro.service.api_key import VARIABLE, api_key_from_environment
from lasro_client.evaluation.estimate_text import estimate_text

if TYPE_CHECKING:
    from rich.console import Console

    from lasro_client.evaluation.score_prompts import Progress

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")]
RewardApi = Annotated[str, typer.Option("--reward-api", envvar="LASRO_REWARD_API_URL", help="URL of the reward API.")]
RewardApiOrOwn = Annotated[
    str | None,
    typer.Option(
        "--reward-api", envvar="LASRO_REWARD_API_URL", help="URL of the reward API; absent: one is started here."
    ),
]
SERVED_HELP = "Registered name, or NAME=module:function to serve here. Repeatable."
Rewards = Annotated[list[str], typer.Option("--reward", help=SERVED_HELP)]
Trainer = Annotated[
    str,
    typer.Option("--surrogate-trainer", envvar="LASRO_SURROGATE_TRAINER_URL", help="URL of the surrogate trainer."),
]
RedisUrl = Annotated[str, typer.Option("--redis", envvar="LASRO_REDIS_URL", help="URL of the Redis of the services.")]


def _key_option(given: str | None) -> str | None:
    """typer takes an empty variable for none; it is refused instead, as everywhere."""
    return api_key_from_environment() if given is None else given


ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", envvar=VARIABLE, help="Key of the services.", show_default=False, callback=_key_option),
]


def print_json(value: Any) -> None:
    """One line on stdout, at once: whoever reads it may be waiting for it."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def is_main_process() -> bool:
    """Whether this process prints: of those that `accelerate launch` or `torchrun` started, the first."""
    return os.environ.get("RANK", "0") == "0"


def stderr() -> Console:
    """Console for progress and messages."""
    from rich.console import Console

    return Console(stderr=True, quiet=not is_main_process(), markup=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; None is shown as a dash."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    # In a file or a pipe nothing is as wide as a terminal, and a wrapped cell could not be searched for.
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)


def print_scores(table: dict[str, dict[str, Any]], columns: Sequence[str]) -> None:
    """Table of mean ± standard error: reward -> `one_step`, `two_step`, ... -> row.

    A row has `n`, `failed`, and for each column its mean and standard error (`sem`).
    """
    rows = [
        [
            name,
            steps.replace("_", " "),
            *(estimate_text(row.get(column), ".3f", ".3f") for column in columns),
            _count(row),
        ]
        for name, rows in table.items()
        for steps, row in rows.items()
    ]
    print_table(("reward", "sampling", *columns, "n"), rows)


def _count(row: dict[str, Any]) -> str:
    return f"{row['n']}" + (f" ({row['failed']} failed)" if row["failed"] else "")


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A progress bar on stderr, driven by calls with (done, total)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr()) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance
