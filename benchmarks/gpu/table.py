"""What was found as a page for people."""

from __future__ import annotations

from typing import Any


def markdown(found: dict[str, Any]) -> str:
    """Device and versions, a row for each figure, and what was skipped or failed."""
    machine = found["machine"]
    title = (
        "Smoke test, whose figures mean nothing" if found["smoke_test"] else "One GPU, beside plain diffusers and peft"
    )
    versions = ", ".join(f"{key} {value}" for key, value in machine.items() if key not in ("device", "gpu") and value)
    lines = [
        f"# {title}: {machine.get('device', 'unknown device')}",
        "",
        f"`make bench-gpu`: random weights of the true architectures. {versions}.",
        "Ours and its baseline are measured in one process, in turns: median (lowest to highest, repeats).",
        "",
        "| | ours | baseline | | ours / baseline | wanted | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_row(figure) for figure in found["figures"]),
        "",
        "| section | seconds | |",
        "| --- | --- | --- |",
        *(f"| {name} | {each['seconds']} | {each['status']} |" for name, each in found["sections"].items()),
        "",
        *(f"- {figure['name']}: {figure['note']}" for figure in found["figures"] if figure["note"]),
        *(f"- {note}" for note in found["notes"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(figure: dict[str, Any]) -> str:
    ratio = "" if figure["ratio"] is None else f"{figure['ratio']:.2f}"
    cells = [figure["name"], _spread(figure["values"], figure["median"], figure["unit"])]
    baseline = sorted(figure["baseline"])
    middle = 0.0 if figure["ratio"] in (None, 0) else figure["median"] / figure["ratio"]
    cells += [_spread(baseline, middle, figure["unit"]) if baseline else "", figure["baseline_name"]]
    return f"| {' | '.join([*cells, ratio, _wanted(figure), _verdict(figure)])} |"


def _spread(values: list[float], median: float, unit: str) -> str:
    if len(values) == 1:
        return f"{_short(median)} {unit}"
    return f"{_short(median)} {unit} ({_short(min(values))} to {_short(max(values))}, {len(values)})"


def _wanted(figure: dict[str, Any]) -> str:
    if figure["at_least"] is not None:
        return f"at least {figure['at_least']:g}"
    return "" if figure["at_most"] is None else f"at most {figure['at_most']:g}"


def _verdict(figure: dict[str, Any]) -> str:
    return "" if figure["met"] is None else ("yes" if figure["met"] else "no")


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
