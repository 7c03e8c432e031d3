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
from lasro.num_steps import JSON_NAMES, title
from lasro_client.evaluation.result import Evaluation, base_table
from lasro_client.report.curves import curves
from lasro_client.report.images import drift_pairs, pair_groups, progress_strips
from lasro_client.report.phases import NEWEST, beginnings, events, phase_rows, worrying_events
from lasro_client.report.run_data import RunData, read_run, seconds_left
from lasro_client.run.divergence import describe_trouble
from lasro_client.run.observer import Observer, RunInfo
from lasro_client.run.round_record import Stage
from lasro_client.run.unranked import MOST_TIED, describe_ties, tied_share, why_unranked
from lasro_client.services.failures import describe

CURVE_TITLES: dict[Stage, str] = {"train": "Fine-tuning", "pretrain": "Pre-training the surrogate"}


class ReportWriter(Observer):
    """Rewrites report.html whenever the run folder has something new to show."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def run_started(self, run: RunInfo) -> None:
        self._folder = run.folder

    def folder_updated(self) -> None:
        assert self._folder is not None, "run_started() comes first"
        write_report(self._folder)


def write_report(run_folder: Path) -> Path:
    """Write `run_folder`/report.html from whatever is there and return its path.

    Raises NotFoundError where the folder is missing and StorageError where it cannot be written.
    """
    path = run_folder / "report.html"
    write_atomically(path, render(read_run(run_folder)).encode())
    return path


def render(run: RunData) -> str:
    """The report as HTML text."""
    columns, strips = progress_strips(run)
    most_first = list(reversed(run.steps))
    return (
        templates()
        .get_template("report.html.jinja")
        .render(
            run=run,
            step_titles={JSON_NAMES[n]: title(n) for n in most_first},
            tones={JSON_NAMES[n]: tone for n, tone in run.tones.items()},
            table=_table(run),
            held_out_drift=(run.summary or {}).get("held_out_drift"),
            status=_status(run),
            phases=phase_rows(run),
            events=events(run),
            newest=NEWEST,
            train_title=CURVE_TITLES["train"],
            marked=bool(beginnings(run.stage("train"))),
            charts=[(title, found) for stage, title in CURVE_TITLES.items() if (found := curves(run, stage))],
            images={JSON_NAMES[n]: groups for n in most_first if (groups := pair_groups(run, n))},
            columns=columns,
            strips=strips,
            drift_pairs=drift_pairs(run),
            notices=_notices(run),
            changes={JSON_NAMES[n]: _count_changes(run.gains(n)) for n in most_first},
            settings=json.dumps(run.config, indent=2, ensure_ascii=False),
            written=now(),
        )
    )


def templates() -> Environment:
    """All templates of pages, with their filters."""
    environment = Environment(
        loader=PackageLoader("lasro_client.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, signed=signed, duration=duration, capitalised=capitalised)
    return environment


def now() -> str:
    """When a page is written."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def number(value: float | None, digits: int = 3) -> str:
    """`value` for a table; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """Like `number`, with its sign."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def capitalised(text: str) -> str:
    """With a capital first letter, the others as they are."""
    return text[:1].upper() + text[1:]


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
    done, total = (0, 0) if last is None else (last.round + 1, last.num_rounds)
    return {
        "round": done,
        "rounds": total,
        "share": min(1.0, done / total) if total else 0.0,
        "elapsed_s": None if last is None else last.elapsed_s,
        "left_s": None if last is None else seconds_left(run.stage(last.stage)),
        "reward_calls": None if last is None else last.reward_calls,
        "budget": run.config.get("budget", {}).get("max_reward_calls"),
    }


def _count_changes(gains: list[float | None]) -> dict[str, int]:
    """For how many prompts the reward rose and fell."""
    known = [gain for gain in gains if gain is not None]
    return {"rose": sum(gain > 0 for gain in known), "fell": sum(gain < 0 for gain in known), "of": len(known)}


def _notices(run: RunData) -> list[str]:
    """Rewards that failed and groups that taught nothing, a sentence each; empty where there were none."""
    failed = sum(record.surrogate.failed_samples for record in run.rounds)
    constant = sum(record.surrogate.constant_groups for record in run.rounds)
    found = []
    if failed:
        found.append(f"Samples that got no reward: {failed}. They were left out, not counted as a number.")
    failing = [record for record in run.rounds if record.rewards.failures]
    if failing:
        found.append(
            f"Round {failing[-1].round + 1}, the last with a failure: {describe(failing[-1].rewards.failures)}."
        )
    unranked = [record for record in run.rounds if record.unranked_rounds]
    if unranked:
        found.append(
            f"Rounds without a ranked pair to update a generator by: {len(unranked)}. "
            f"Round {unranked[-1].round + 1}: {why_unranked(unranked[-1])}."
        )
    if tied_share(run.rounds) > MOST_TIED:
        found.append(f"Of all pairs {tied_share(run.rounds):.0%} tied. Newest round: {describe_ties(run.rounds[-1])}.")
    if constant:
        found.append(
            f"Groups without two samples of different reward, which teach nothing: {constant} in {len(run.rounds)} "
            "rounds. If that is most of them, use more seeds per prompt, other prompts, or a smaller tie margin."
        )
    found += worrying_events(run)
    troubled = [record for record in run.rounds if record.health.trouble is not None]
    if troubled:
        found.append(f"Round {troubled[-1].round + 1}: {describe_trouble(troubled[-1].health)}")
    for when, evaluation in (("base", run.before), ("adapted", run.after)):
        found += _veto_notice(run, when, evaluation) if evaluation else []
        for name, statuses in (evaluation.failures if evaluation else {}).items():
            reasons = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
            words = evaluation.errors.get(name) if evaluation else None
            found.append(
                f"{name} could not score some evaluation images of the {when} model ({reasons})."
                + (f" It said: {words}." if words else "")
            )
    return found


def _veto_notice(run: RunData, when: str, evaluation: Evaluation) -> list[str]:
    counts = {num_steps: sum(run.vetoed(evaluation, num_steps)) for num_steps in reversed(run.steps)}
    if not any(counts.values()):
        return []
    parts = ", ".join(f"{count} at {title(num_steps).lower()}" for num_steps, count in counts.items())
    return [
        f"Images of the {when} model that a guard vetoed, of {len(evaluation.prompts)}: {parts}. "
        "They count in the table of rewards, not in the gains."
    ]
