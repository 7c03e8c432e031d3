"""The demo's surrogate from nothing: stage 1, warm-up runs of stage 2, then training on the samples of all of them.

A warm-up run is a run of stage 2 whose generator is thrown away; what counts are its samples and its surrogate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lasro.config import RunSettings
from lasro_client.run.base_sample_rewards import BASE_REWARDS_FILE
from lasro_client.run.folder import SURROGATE_FILE
from lasro_client.run.observer import Observer
from lasro_client.run.stage1 import pretrain
from lasro_client.run.stage2 import train

WARM_UP_RUNS = 5


def with_initial_surrogate(config: RunSettings, surrogate: Path, base_rewards: Path) -> RunSettings:
    """A run of stage 2 that starts from this surrogate, with stage 1's groups in its replay."""
    return _changed(config, "train", initial_surrogate=str(surrogate), initial_base_rewards=base_rewards)


def surrogate_from_scratch(
    stage1: RunSettings, warm_up: RunSettings, final: RunSettings, out: Path, observers: Sequence[Observer] = ()
) -> tuple[Path, Path]:
    """Surrogate and base-sample rewards for `with_initial_surrogate`. Each part is a run in its own folder of `out`.

    Parts that were interrupted are resumed. The first warm-up run starts from stage 1's surrogate; the others, of
    other seeds, from the first one's.
    """
    first = pretrain(stage1, out / "stage1", observers)
    base_rewards = first.with_name(BASE_REWARDS_FILE)
    folders = [warm_up_folder(out, i) for i in range(WARM_UP_RUNS)]
    for i, folder in enumerate(folders):
        start = first if i == 0 else folders[0] / SURROGATE_FILE
        seeded = warm_up.model_copy(update={"seed": warm_up.seed + i, "name": f"{warm_up.name}-{i}"})
        train(with_initial_surrogate(seeded, start, base_rewards), folder, observers)
    warmed_up, runs = str(folders[0] / SURROGATE_FILE), (out / "stage1", *folders)
    last = _changed(final, "pretrain", initial_surrogate=warmed_up, initial_samples=runs)
    return pretrain(last, out / "surrogate", observers), base_rewards


def warm_up_folder(out: Path, index: int) -> Path:
    """`warm-up-INDEX`, or the folder that version 0.1 made for it."""
    old = out / f"rehearsal-{index}"
    return old if old.exists() else out / f"warm-up-{index}"


def _changed(config: RunSettings, table: str, **settings: Any) -> RunSettings:
    return config.model_copy(update={table: getattr(config, table).model_copy(update=settings)})
