"""report.html of a run: one file without scripts or links, to be watched during the run and kept after it.

write_report(Path("runs/demo"))
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lasro.files import write_atomically
from lasro_client.evaluation.result import Evaluation, base_table
from lasro_client.report.charts import Chart, Series, chart
from lasro_client.report.images import drift_pairs, pair_groups, progress_strips
from lasro_client.report.run_data import RunData, points, read_run, seconds_left
from lasro_client.run.divergence import told

STAGE_TITLES = {"two_step": "Two steps", "one_step": "One step"}
TONES = {"one_step": 1, "two_step": 2}


def write_report(run_folder: Path) -> Path:
    """Write `run_folder`/report.html from whatever is there and return its path.

    Raises NotFoundError where the folder is missing and StorageError where it cannot be written.
    """
    path = run_folder / "report.html"
    write_atomically(path, render(read_run(run_folder)).encode())
    return path


def render(run: RunData) -> str:
    """The report as HTML text."""
    environment = Environment(
        loader=PackageLoader("lasro_client.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, signed=signed, duration=duration)
    columns, strips = progress_strips(run)
    return environment.get_template("report.html.jinja").render(
        run=run,
        stages=STAGE_TITLES,
        table=_table(run),
        status=_status(run),
        charts=[
            (title, found)
            for title, stage in (("Fine-tuning", "train"), ("Pre-training the surrogate", "pretrain"))
            if (found := charts(run, stage))
        ],
        images={stage: groups for stage in STAGE_TITLES if (groups := pair_groups(run, stage))},
        columns=columns,
        strips=strips,
        drift_pairs=drift_pairs(run),
        notices=_notices(run),
        moved={stage: _moved(run.gains(stage)) for stage in STAGE_TITLES},
        settings=json.dumps(run.config, indent=2, ensure_ascii=False),
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
    )


def number(value: float | None, digits: int = 3) -> str:
    """`value` for a table; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """Like `number`, with its sign."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return "–"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"


def _table(run: RunData) -> dict[str, Any]:
    """The rows of summary.json; before the end, those of the base."""
    if run.summary is not None and isinstance(run.summary.get("rewards"), dict):
        return run.summary["rewards"]
    return {} if run.before is None else base_table(run.before)


def _status(run: RunData) -> dict[str, Any]:
    last = run.last
    total = int(last.get("rounds") or 0)
    done = int(last["round"]) + 1 if last else 0
    return {
        "stage": last.get("stage"),
        "round": done,
        "rounds": total,
        "share": min(1.0, done / total) if total else 0.0,
        "elapsed_s": last.get("elapsed_s"),
        "left_s": seconds_left(run.stage(str(last.get("stage")))),
        "reward_calls": last.get("reward_calls"),
        "budget": run.config.get("budget", {}).get("max_reward_calls"),
    }


def _moved(gains: list[float | None]) -> dict[str, int]:
    """How many prompts gained and lost."""
    known = [gain for gain in gains if gain is not None]
    return {"rose": sum(gain > 0 for gain in known), "fell": sum(gain < 0 for gain in known), "of": len(known)}


def _notices(run: RunData) -> list[str]:
    """Rewards that failed and groups that taught nothing, a sentence each; empty where there were none."""
    failed = sum(int(line.get("failed_samples") or 0) for line in run.rounds)
    constant = sum(int(line.get("constant_groups") or 0) for line in run.rounds)
    found = []
    if failed:
        found.append(f"Samples that got no reward: {failed}. They were left out, not counted as a number.")
    if constant:
        found.append(
            f"Groups without two samples of different reward, which teach nothing: {constant} in {len(run.rounds)} "
            "rounds. If that is most of them, use more seeds per prompt, other prompts, or a smaller tie margin."
        )
    troubled = [line for line in run.rounds if line.get("trouble")]
    if troubled:
        last = troubled[-1]
        found.append(f"Round {int(last['round']) + 1}: {told(last)}")
    for when, evaluation in (("base", run.before), ("adapted", run.after)):
        found += _veto_notice(run, when, evaluation) if evaluation else []
        for name, statuses in (evaluation.failures if evaluation else {}).items():
            reasons = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
            found.append(f"{name} could not score some evaluation images of the {when} model ({reasons}).")
    return found


def _veto_notice(run: RunData, when: str, evaluation: Evaluation) -> list[str]:
    counts = {title: sum(run.vetoed(evaluation, stage)) for stage, title in STAGE_TITLES.items()}
    if not any(counts.values()):
        return []
    told = ", ".join(f"{count} at {title.lower()}" for title, count in counts.items())
    return [
        f"Images of the {when} model that a guard vetoed, of {len(evaluation.prompts)}: {told}. "
        "They count in the table of rewards, not in the gains."
    ]


def _both_stages(lines: list[dict[str, Any]], *path: str) -> list[Series]:
    return [
        Series(title, TONES[stage], points(lines, *path, stage), smooth=True) for stage, title in STAGE_TITLES.items()
    ]


def _combination(run: RunData) -> str:
    """What the total is."""
    what = {
        "sum": "Weighted sum that is trained on.",
        "product": "Product of powers that is trained on.",
        "minimum": "Smallest weighted reward, which is what is trained on.",
    }[run.objective.combine]
    if run.objective.normalised:
        what += " Normalised by what the replay holds, which follows the run: growth shows in the rewards themselves."
    return what


def charts(run: RunData, stage: str) -> list[Chart]:
    """The curves of one stage, those without any value left out."""
    lines = run.stage(stage)
    names = list(dict.fromkeys(name for line in lines for name in line.get("reward") or {}))
    found = [
        chart(
            f"Reward: {name}",
            "From the reward itself, on each round's own prompts.",
            _both_stages(lines, "reward", name),
        )
        for name in names
    ]
    if len(names) > 1:
        found.append(chart("Total reward", _combination(run), _both_stages(lines, "total")))
    if run.objective.floors:
        note = "Share of samples below the floor of a guard. They are left out of the total."
        found.append(chart("Vetoed", note, _both_stages(lines, "vetoed"), floor=0.0))
    other = "scout" if stage == "pretrain" else "base"
    found.append(
        chart(
            f"The {other} beside it",
            f"Total reward of the {other} on the same prompts and noise: compare with the curve above.",
            _both_stages(lines, "beside"),
        )
    )
    if stage == "train":
        found += [
            chart(
                "Gain over the base",
                "Reward minus the base's on the same noise, what a run is stopped by; 0 (dashed) is the base.",
                _both_stages(lines, "gain"),
                reference=0.0,
            ),
            chart(
                "Drift on the prompts trained on",
                "Distance of latents from the base's of the same noise; 1: as another seed, 0.71: one picture for all.",
                _both_stages(lines, "drift"),
                floor=0.0,
            ),
        ]
    accuracies = [
        Series("fresh, before training on them", 2, points(lines, "fresh_pair_accuracy")),
        Series("held out", 1, points(lines, "held_out_pair_accuracy")),
        Series("trained on", 3, points(lines, "pair_accuracy")),
    ]
    found += [
        chart(
            "Surrogate score",
            "Normalised, so only its direction says something. It rising while the reward falls means that the "
            "generator fools the surrogate.",
            _both_stages(lines, "score"),
        ),
        chart(
            "Pair accuracy of the surrogate",
            "Share of pairs ranked as the reward ranks them; 0.5 (dashed) is chance. Trust the fresh and held-out "
            "curves, the third one flatters.",
            accuracies,
            floor=0.45,
            ceiling=1.0,
            reference=0.5,
        ),
        chart(
            "Surrogate against reward",
            "1 − rank correlation within fresh groups: 0 is perfect, 1 is no relation.",
            [Series("gap", 2, points(lines, "reward_gap"))],
            floor=0.0,
        ),
        _plain("Bradley–Terry loss", "Of the surrogate; ln 2 ≈ 0.69 (dashed) is guessing.", lines, "bt_loss", 0.693),
        _plain("Generator loss", "Minus the surrogate scores plus the regulariser.", lines, "loss"),
        _plain("Regulariser", "Squared distance to the frozen base: how far it has moved.", lines, "regulariser"),
        _plain("Gradient norm", "Before clipping. Jumps mean an untrustworthy surrogate.", lines, "grad_norm"),
    ]
    return [one for one in found if one is not None]


def _plain(
    title: str, note: str, lines: list[dict[str, Any]], key: str, reference: float | None = None
) -> Chart | None:
    series = [Series(title, 3, points(lines, key))]
    return chart(title, note, series, ceiling=reference, reference=reference)
