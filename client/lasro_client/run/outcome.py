"""What comes of a run: its averaged adapter, fitted to the drift budget and exported, measured and summed up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lasro.errors import RewardError
from lasro.models.lora import parameters_set
from lasro_client.evaluation.result import Evaluation, summary_table
from lasro_client.run.alternation import Alternation
from lasro_client.run.fit_to_budget import fit_to_budget
from lasro_client.run.folder import SURROGATE_FILE, Summary
from lasro_client.run.held_out import HeldOut
from lasro_client.run.observer import Observers
from lasro_client.run.reward_watch import RewardWatch
from lasro_client.run.start_findings import read_audit
from lasro_client.run.versions import installed_versions


def keep_to_budget(alternation: Alternation, held_out: HeldOut, observer: Observers) -> None:
    """Export the averaged adapter, scaled down where it is beyond the drift budget.

    Where the weights of a run from nothing stand at the budget, their average is a little behind: it is scaled up.
    """
    trainer, budget = alternation.trainer, alternation.config.train.drift_budget
    if budget is not None:
        factor = trainer.peers.on_main_and_broadcast(
            lambda: fit_to_budget(trainer, held_out.base_images, budget, alternation.most_scale), float
        )
        trainer.average = trainer.scaled_average(factor)
        if factor != 1:
            observer.note(f"the averaged adapter is scaled by {factor:.2f}, to train.drift_budget = {budget:g}")
    alternation.folder.export(trainer)


def evaluated(measure: Callable[[], Evaluation], held_out: HeldOut, watch: RewardWatch) -> Evaluation:
    """What `measure` finds; it is taken again where a reward scored nothing, once that answers. Raises RewardError."""
    try:
        return watch.peers.on_main_and_broadcast(measure, Evaluation)
    except RewardError:
        watch.wait(held_out.rewards)
        return watch.peers.on_main_and_broadcast(measure, Evaluation)


def measured(alternation: Alternation, before: Evaluation, held_out: HeldOut, watch: RewardWatch) -> dict[str, Any]:
    """What summary.json says of the exported adapter: its rewards, and how far it moved the model, on held-out prompts
    and on others."""
    trainer = alternation.trainer
    with parameters_set(trainer.parameters, trainer.average):
        after = evaluated(held_out.evaluate_adapted, held_out, watch)
        drifts = watch.peers.on_main_and_broadcast(
            lambda: {"drift": held_out.measure_drift(), "held_out_drift": held_out.measure_held_out_drift()},
            dict[str, Any],
        )
    return {"prompts": len(before.prompts), "rewards": summary_table(before, after), **drifts}


def summarise(alternation: Alternation, measurements: dict[str, Any], duration_s: float) -> Summary:
    """The contents of summary.json."""
    config, progress = alternation.config, alternation.progress
    return {
        "run": config.name,
        "seed": config.seed,
        "rounds": progress.round,
        "ended": progress.ended,
        "nothing_learned": progress.nothing_learned,
        "audit": read_audit(alternation.folder.path) if config.train.is_from_nothing else None,
        **measurements,
        "reward_calls": progress.reward_calls,
        "duration_s": duration_s,
        "timesteps": config.train.timesteps and list(config.train.timesteps),
        "versions": installed_versions(),
        "adapter": "adapter",
        "surrogate": SURROGATE_FILE if alternation.surrogate.source is not None else None,
    }
