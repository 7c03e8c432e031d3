"""A run in short, as Markdown to paste into an issue or a message. Paths of this machine are shown by their last name.

print(as_markdown(facts(read_run(Path("runs/demo")), "finished")))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from lasro.num_steps import title
from lasro_client.evaluation.estimate_text import estimate_text
from lasro_client.evaluation.num_steps import NUMBERS, by_name
from lasro_client.report.run_data import RunData
from lasro_client.run.kept_settings import own_settings


def facts(run: RunData, state: str) -> dict[str, Any]:
    """What is known of a run; None or empty for what is not yet. `state`: as `lasro runs ls` says it."""
    summary, last = run.summary or {}, run.last
    elapsed_s = summary.get("duration_s", None if last is None else last.elapsed_s)
    return {
        "run": run.name,
        "state": state,
        "stage": run.config.get("stage"),
        "seed": run.config.get("seed"),
        "round": 0 if last is None else last.round + 1,
        "rounds": 0 if last is None else last.num_rounds,
        "rewards": summary.get("rewards", {}),
        "gain": {} if last is None else by_name(last.rewards.gain),
        "held_out_drift": _distances(summary.get("held_out_drift") or {}),
        "drift": (run.drift or {}).get("distance"),
        "held_out_pair_accuracy": summary.get("held_out_pair_accuracy"),
        "reward_calls": summary.get("reward_calls", None if last is None else last.reward_calls),
        "minutes": None if elapsed_s is None else elapsed_s / 60,
        "ended": summary.get("ended") or run.stopped,
        "settings": {name: _shown(value) for name, value in own_settings(run.config).items()},
        "versions": summary.get("versions", {}),
        "reward_versions": {} if last is None else dict(last.rewards.versions),
    }


def as_markdown(found: Mapping[str, Any]) -> str:
    """The facts of a run, in lines of which each ends."""
    return "".join(f"{line}\n" for line in _lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    seed = "" if found["seed"] is None else f", seed {found['seed']}"
    yield f"**{found['run']}**: {found['state']}, {found['round']} of {found['rounds']} rounds{seed}"
    yield ""
    if found["rewards"]:
        yield from _table(found["rewards"])
        yield ""
    elif measured := {steps: gain for steps, gain in found["gain"].items() if gain is not None}:
        gains = ", ".join(f"{_steps(steps)} {gain:+.3f}" for steps, gain in measured.items())
        yield f"- gain over the base in the newest round: {gains}"
    if drift := [f"{_steps(steps)} {_estimate(each, 2)}" for steps, each in found["held_out_drift"].items()]:
        yield f"- drift in changes of prompt, held-out prompts: {', '.join(drift)}"
    if found["drift"] is not None:
        yield f"- drift in changes of prompt, other prompts: {_estimate(found['drift'], 2)}"
    if found["held_out_pair_accuracy"] is not None:
        yield f"- held-out pairs ranked right: {found['held_out_pair_accuracy']:.3f}"
    if found["reward_calls"] is not None and found["minutes"] is not None:
        yield f"- cost: {found['reward_calls']:,} reward calls in rounds, {found['minutes']:.1f} minutes"
    if found["ended"]:
        yield f"- ended early: {found['ended']}"
    for name, what in (("versions", "versions"), ("reward_versions", "registrations of rewards")):
        if found[name]:
            yield f"- {what}: {', '.join(f'{key} {value}' for key, value in found[name].items())}"
    if found["settings"]:
        yield "- settings that are not the defaults:"
        yield ""
        yield "```toml"
        yield from (f"{name} = {_toml(value)}" for name, value in found["settings"].items())
        yield "```"


def _table(rewards: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    yield "| reward | sampling | before | after | gain | prompts |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, rows in rewards.items():
        for steps, row in rows.items():
            before, after = _estimate(row["before"], 3), _estimate(row["after"], 3)
            gain = _estimate(row["difference"], 3, "+")
            yield f"| {name} | {_steps(steps)} | {before} | {after} | {gain} | {row['n']} |"


def _steps(name: str) -> str:
    """`two steps` for `two_step`."""
    return title(NUMBERS[name]).lower()


def _estimate(estimate: Mapping[str, Any], digits: int, sign: str = "") -> str:
    return estimate_text(estimate, f"{sign}.{digits}f", f".{digits}f") or "-"


def _distances(drift: Mapping[str, Any]) -> dict[str, Any]:
    """Those in changes of prompt; an older summary has none."""
    return {steps: each["distance"] for steps, each in drift.items() if each.get("distance")}


def _shown(value: Any) -> Any:
    """As it is, but the last name of an absolute path."""
    if isinstance(value, Mapping):
        return {name: _shown(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_shown(each) for each in value]
    is_path = isinstance(value, str) and PurePath(value).is_absolute()
    return PurePath(value).name if is_path else value


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {_toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps("none" if value is None else value, ensure_ascii=False)
