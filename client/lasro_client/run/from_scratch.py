"""The demo's surrogate from nothing: stage 1, rehearsals of stage 2, and one more look at all that these paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from lasro.config import RunSettings
from lasro_client.run.base_sample_rewards import BASE_REWARDS_FILE
from lasro_client.run.folder import SURROGATE_FILE
from lasro_client.run.stage1 import pretrain
from lasro_client.run.stage2 import train

WARM_UP_RUNS = 5


def with_initial_surrogate(config: RunSettings, surrogate: Path, labels: Path) -> RunSettings:
    """A run of stage 2 that starts from this surrogate and from stage 1's groups."""
    return _changed(config, "train", initial_surrogate=str(surrogate), initial_base_rewards=labels)


def surrogate_from_scratch(
    stage1: RunSettings, rehearsal: RunSettings, final: RunSettings, out: Path, console: Console
) -> tuple[Path, Path]:
    """Surrogate and labels for `with_initial_surrogate`. Each part has a folder in `out`; what is there is resumed.

    The first rehearsal starts from stage 1's surrogate, the others, of other seeds, from the first one's; the final
    part learns from the samples of all.
    """
    first = pretrain(stage1, out / "stage1", console)
    labels = first.with_name(BASE_REWARDS_FILE)
    folders = [out / f"rehearsal-{i}" for i in range(WARM_UP_RUNS)]
    for i, folder in enumerate(folders):
        start = first if i == 0 else folders[0] / SURROGATE_FILE
        seeded = rehearsal.model_copy(update={"seed": rehearsal.seed + i, "name": f"{rehearsal.name}-{i}"})
        train(with_initial_surrogate(seeded, start, labels), folder, console)
    rehearsed, runs = str(folders[0] / SURROGATE_FILE), (out / "stage1", *folders)
    last = _changed(final, "pretrain", initial_surrogate=rehearsed, initial_samples=runs)
    return pretrain(last, out / "surrogate", console), labels


def _changed(config: RunSettings, table: str, **settings: Any) -> RunSettings:
    return config.model_copy(update={table: getattr(config, table).model_copy(update=settings)})
