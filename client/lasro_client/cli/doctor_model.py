"""`lasro doctor MODEL`: what a run of a model needs, computed, and what one step of each kind took."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lasro_client.cli.output import print_json, print_table

if TYPE_CHECKING:
    from lasro.config import RunSettings

GIB = 2**30


def examine_model(
    model: str | None, config: Path | None, settings: list[str], run: bool, processes: int, as_json: bool
) -> None:
    """Print the report; raises ModelError where the model is not supported, DeviceMemoryError where it does not fit,
    and ConfigError where `[tracking]` names what is not here."""
    from lasro_client.watch.tracking import check_tracking

    chosen = _settings(model, config, settings)
    check_tracking(chosen.tracking)
    from lasro_client.doctor.report import examine  # torch, once the settings are known to be good

    report = examine(chosen, run, processes)
    print_json(report) if as_json else _print(report)


def _settings(model: str | None, config: Path | None, settings: list[str]) -> RunSettings:
    """Of the TOML file, else those of a run that says nothing but its model."""
    from lasro.config import load_config

    given = [] if model is None else [f"model.path={json.dumps(model)}"]
    if config is not None:
        return load_config(config, [*given, *settings])
    return _defaults([*given, *settings])


def _defaults(settings: list[str]) -> RunSettings:
    from pydantic import ValidationError

    from lasro.config import RunSettings
    from lasro.config.load import assign
    from lasro.errors import ConfigError
    from lasro.validation import explain

    prompts = {"train": "unread", "held_out": "unread"}
    tree: dict[str, Any] = {"name": "doctor", "prompts": prompts, "rewards": [{"name": "reward"}]}
    for setting in settings:
        assign(tree, setting)
    try:
        return RunSettings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, RunSettings)) from error


def _print(report: dict[str, Any]) -> None:
    height, width = report["image_size"]
    print(f"{report['model']}: supported, a {report['family']} of {height} x {width} pixels in {report['dtype']}\n")
    rows = [(part["name"], part["kind"], f"{part['parameters']:,}", _size(part["bytes"])) for part in report["parts"]]
    print_table(("part", "class", "parameters", "memory"), rows)
    print(
        f"\ntrained: {report['lora_parameters']:,} of the generator, {report['surrogate_parameters']:,} of the "
        f"surrogate; text encoders are let go once the prompts are embedded\n"
    )
    columns = ("process", "step", "weights", "computing", "computed in all", "seen", "seconds")
    print_table(columns, [_memory_row(row) for row in report["memory"]])
    sys.stdout.write("\n")
    print_table(("a run", ""), _of_a_run(report))


def _memory_row(row: dict[str, Any]) -> tuple[object, ...]:
    seen, seconds = row.get("seen"), row.get("seconds")
    of_computed = None if seen is None else f"{_size(seen)} ({seen / row['total']:.0%})"
    sizes = [_size(row[key]) for key in ("weights", "computing", "total")]
    return row["process"], row["step"], *sizes, of_computed, None if seconds is None else f"{seconds:.2f}"


def _of_a_run(report: dict[str, Any]) -> list[tuple[str, object]]:
    calls, disk, round_s = report["reward_calls"], report["disk"], report["seconds_a_round"]
    free = report["free_memory"]
    return [
        ("device", f"{report['device']}, {'-' if free is None else _size(free)} free"),
        ("a first run embeds its prompts", f"{_size(report['text_encoders'])} more for a while"),
        ("seconds a round, without the rewards' time", None if round_s is None else f"{round_s:.2f}"),
        ("rounds", _range(calls["least_rounds"], calls["most_rounds"])),
        ("reward calls, without evaluations", _range(calls["least"], calls["most"])),
        ("disk, run folder", _size(disk["checkpoint"] + disk["adapter"] + disk["images"] + disk["surrogate"])),
        ("disk, trainer", _size(disk["trainer"])),
        ("disk, free here", _size(disk["free"])),
    ]


def _range(least: int, most: int) -> str:
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB"
