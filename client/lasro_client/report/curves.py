"""Which curves the report shows, and what it says about each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lasro.num_steps import NumSteps, title
from lasro.wire import REFERENCE_KINDS
from lasro_client.report.charts import Chart, Series, chart, moving_average
from lasro_client.report.frontier import frontier
from lasro_client.report.phases import beginnings
from lasro_client.report.run_data import RunData, points
from lasro_client.run.round_record import Means, RoundRecord, Stage

KINDS: dict[str, tuple[str, int]] = {
    "same_z1": ("same z1, other second noise", 3),
    "between_steps": ("fewer steps against more of them", 4),
    "across_seeds": ("other first noise", 5),
}
"""Label and tone of the kinds of pairs without a reference sample."""
COMBINATIONS = {
    "sum": "Weighted sum that is trained on.",
    "product": "Product of powers that is trained on.",
    "minimum": "Smallest weighted reward, which is what is trained on.",
}


def curves(run: RunData, stage: Stage) -> list[Chart]:
    """The curves of one stage; those without any value are left out."""
    rounds = run.stage(stage)
    found = [
        *_reward_curves(run, rounds),
        *_reference_curves(run, rounds, stage),
        frontier(run) if stage == "train" else None,
        *_surrogate_curves(run, rounds),
        _one("Generator loss", "Minus the surrogate scores plus the regulariser.", rounds, lambda r: r.generator.loss),
        _one(
            "Regulariser",
            "Squared distance to the frozen base: how far it has moved.",
            rounds,
            lambda r: r.generator.regulariser,
        ),
        _one(
            "Gradient norm",
            "Before clipping. Jumps mean an untrustworthy surrogate.",
            rounds,
            lambda r: r.generator.grad_norm,
        ),
    ]
    return [one for one in found if one is not None]


def _reward_curves(run: RunData, rounds: list[RoundRecord]) -> list[Chart | None]:
    names = list(dict.fromkeys(name for record in rounds for name in record.rewards.rewards))
    found = [
        _chart(
            rounds,
            f"Reward: {name}",
            "From the reward itself, on each round's own prompts.",
            _both(run, rounds, lambda r, name=name: r.rewards.rewards.get(name)),
        )
        for name in names
    ]
    if len(names) > 1:
        note = COMBINATIONS[run.objective.combine]
        if run.objective.normalised:
            note += (
                " Normalised by what the replay holds, which follows the run: growth shows in the rewards themselves."
            )
        found.append(_chart(rounds, "Total reward", note, _both(run, rounds, lambda r: r.rewards.total)))
    if run.objective.floors:
        note = "Share of samples below the floor of a guard. They are left out of the total."
        found.append(_chart(rounds, "Vetoed", note, _both(run, rounds, lambda r: r.rewards.vetoed), floor=0.0))
    return found


def _reference_curves(run: RunData, rounds: list[RoundRecord], stage: Stage) -> list[Chart | None]:
    """The reference samples: in stage 1 those of the probe generator, in stage 2 the base's."""
    policy = "probe generator" if stage == "pretrain" else "base"
    found = [
        _chart(
            rounds,
            f"The {policy} for comparison",
            f"Total reward of the {policy} on the same prompts and noise: compare with the curve above.",
            _both(run, rounds, lambda r: r.rewards.reference),
        )
    ]
    if stage == "train":
        found += [
            _chart(
                rounds,
                "Gain over the base",
                "Reward minus the base's on the same noise, what a run is stopped by; 0 (dashed) is the base.",
                _both(run, rounds, lambda r: r.rewards.gain),
                reference=0.0,
            ),
            _chart(
                rounds,
                "Drift on the prompts trained on",
                "Distance of latents from the base's of the same noise; 1: as another seed, 0.71: one picture for all.",
                _both(run, rounds, lambda r: r.generator.drift),
                floor=0.0,
            ),
            _chart(
                rounds,
                "Drift in changes of prompt",
                "Distance from the base's images of the same noise; 1: as its image of another prompt.",
                [*_both(run, rounds, lambda r: r.generator.distance), _drift_target(rounds)],
                floor=0.0,
            ),
        ]
    return found


def _drift_target(rounds: list[RoundRecord]) -> Series:
    return Series("allowed by then", 3, points(rounds, lambda r: r.generator.drift_target), smooth=False)


def _surrogate_curves(run: RunData, rounds: list[RoundRecord]) -> list[Chart | None]:
    references = {REFERENCE_KINDS[n]: (f"reference, {title(n).lower()}", tone) for n, tone in run.tones.items()}
    kinds = references | KINDS
    accuracies = [
        Series("fresh, before training on them", 2, points(rounds, lambda r: r.surrogate.fresh_pair_accuracy)),
        Series("held out", 1, points(rounds, lambda r: r.surrogate.held_out_pair_accuracy)),
        Series("trained on", 3, points(rounds, lambda r: r.surrogate.pair_accuracy)),
    ]
    return [
        _chart(
            rounds,
            "Surrogate score",
            "Normalised, so only its direction says something. It rising while the reward falls means that the "
            "generator fools the surrogate.",
            _both(run, rounds, lambda r: r.generator.score),
        ),
        _chart(
            rounds,
            "Pair accuracy of the surrogate",
            "Share of pairs ranked as the reward ranks them; 0.5 (dashed) is chance. Trust the fresh and held-out "
            "curves, the third one flatters.",
            accuracies,
            floor=0.45,
            ceiling=1.0,
            reference=0.5,
        ),
        _chart(
            rounds,
            "Pair accuracy by kind",
            "Fresh pairs by what their samples share, averaged over rounds by number of pairs. A generator moves each "
            "sample while its noise stays: the curves of reference samples say whether the gradient helps.",
            [_kind(rounds, kind, *drawn) for kind, drawn in kinds.items()],
            floor=0.45,
            ceiling=1.0,
            reference=0.5,
        ),
        _chart(
            rounds,
            "Surrogate against reward",
            "1 − rank correlation within fresh groups: 0 is perfect, 1 is no relation.",
            [Series("gap", 2, points(rounds, lambda r: r.surrogate.reward_gap))],
            floor=0.0,
        ),
        _one(
            "Bradley–Terry loss",
            "Of the surrogate; ln 2 ≈ 0.69 (dashed) is guessing.",
            rounds,
            lambda r: r.surrogate.loss,
            reference=0.693,
        ),
    ]


def _chart(rounds: list[RoundRecord], title: str, note: str, series: Sequence[Series], **view: Any) -> Chart | None:
    """A chart over these rounds, which marks where another phase of the run began; `view` as of `chart`."""
    return chart(title, note, series, marks=beginnings(rounds), **view)


def _kind(rounds: list[RoundRecord], kind: str, label: str, tone: int) -> Series:
    """Averages alone: five curves with their single rounds are a tangle."""
    found = [
        (record.round + 1, record.surrogate.accuracy_by_kind[kind])
        for record in rounds
        if kind in record.surrogate.accuracy_by_kind
    ]
    averages = moving_average([each.accuracy for _, each in found], weights=[each.pairs for _, each in found])
    return Series(label, tone, [(done, y) for (done, _), y in zip(found, averages, strict=True)], smooth=False)


def _both(run: RunData, rounds: list[RoundRecord], read: Callable[[RoundRecord], Means | None]) -> list[Series]:
    """The curves of a value, that of the most steps first."""

    def series(num_steps: NumSteps) -> Series:
        def value(record: RoundRecord) -> float | None:
            means = read(record)
            return None if means is None else means.get(num_steps)

        return Series(title(num_steps), run.tones[num_steps], points(rounds, value))

    return [series(num_steps) for num_steps in reversed(run.steps)]


def _one(
    title: str,
    note: str,
    rounds: list[RoundRecord],
    read: Callable[[RoundRecord], float | None],
    reference: float | None = None,
) -> Chart | None:
    return _chart(rounds, title, note, [Series(title, 3, points(rounds, read))], ceiling=reference, reference=reference)
