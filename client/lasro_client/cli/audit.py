"""`lasro rewards audit`: is a reward worth a run?"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lasro_client.cli.output import ApiKey, AsJson, print_json, print_table
from lasro_client.cli.prompts import FORMATS, Comments, read_checked_prompts
from lasro_client.cli.train import Set, shipped_config
from lasro_client.evaluation.estimate_text import estimate_text

# Longer than the reward API gives a request of one audit; it then says what was not scored in time.
TIMEOUT_S = 660.0


def audit_reward(
    name: Annotated[
        str,
        typer.Argument(
            help="Registered name; without an API also one that CONFIG serves, or NAME=module:function.",
            show_default=False,
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of the run it is for: model, prompts, length.", show_default="the demo's"),
    ] = None,
    settings: Set = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help=FORMATS, show_default="the run's training prompts"),
    ] = None,
    comments: Comments = False,
    count: Annotated[int, typer.Option(min=1, help="Prompts drawn from them.")] = 8,
    seeds: Annotated[int, typer.Option(min=2, max=256, help="Per prompt, each in each number of steps.")] = 6,
    repeats: Annotated[int, typer.Option(min=2, max=32, help="Times that each image is scored.")] = 2,
    out: Annotated[
        Path | None, typer.Option(help="Folder for audit.png and audit.json.", show_default="runs/audit-NAME")
    ] = None,
    reward_api: Annotated[
        str | None,
        typer.Option(
            envvar="LASRO_REWARD_API_URL", help="URL of the reward API; absent: CONFIG's, or one is started here."
        ),
    ] = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Before a run: can this reward train anything, and what will it cost?

    Scores images of the base past the cache. Exit status 0 means that the audit was made, whatever it says.
    """
    from lasro.config import load_config

    run = load_config(config or shipped_config("demo"), settings or [])
    texts = read_checked_prompts(prompts or run.prompts.train, comments or run.prompts.comments, run.model)
    from lasro_client.audit.run import audit, choose_prompts  # torch, once the input is known to be good
    from lasro_client.cli.output import progress_bar
    from lasro_client.evaluation.compare_to_base import reward_service

    chosen = choose_prompts(texts, count, run.seed)
    url = reward_api or run.services.reward_api
    with reward_service([name], url, api_key, run.rewards, TIMEOUT_S) as (client, (registered,)):
        folder = out or Path("runs") / f"audit-{registered}"
        summary = audit(run, registered, client, chosen, seeds, repeats, folder, progress_bar)
    if as_json:
        print_json(summary)
    else:
        _print(summary)
        print(f"picture  {folder / 'audit.png'}")


def _print(summary: dict[str, Any]) -> None:
    print(f"{summary['reward']}, version {summary['version']}: trainable: {summary['trainable']}\n")
    print_table(("figure", "value"), _figures(summary))
    for finding in summary["findings"]:
        print(f"\n{finding['name']} ({finding['level']}): {finding['says']}\n  {_capital(finding['do'])}.")
    sys.stdout.write("\n")


def _figures(summary: dict[str, Any]) -> list[tuple[str, str]]:
    from lasro.num_steps import JSON_NAMES, title

    spread_of, ties, failures = summary["spread"], summary["ties"], summary["failures"]
    spread = spread_of["as_ranked"]
    mean, latency, cost = summary["mean"], summary["latency_s"], summary["cost"]
    steps = {name: title(n).lower() for n, name in JSON_NAMES.items() if name in spread_of}
    within = [_standard_deviation(spread_of[name]["image_variance"]) for name in steps]
    sampled = " / ".join(steps.values())
    rounds = _range(cost["least_rounds"], cost["rounds"])
    return [
        (f"mean, {sampled}", " / ".join(estimate_text(mean[name]) or "-" for name in steps)),
        ("standard deviation between prompts", _standard_deviation(spread["prompt_variance"])),
        ("standard deviation between images of a prompt", _standard_deviation(spread["image_variance"])),
        (f"  within {sampled}", " / ".join(within)),
        ("standard deviation between repeats of an image", _standard_deviation(spread["repeat_variance"])),
        ("pairs that can be ranked right, at best", _share(spread["best_pair_accuracy"])),
        (f"pairs within the tie margin of {ties['margin']:.3g}", _share(ties["tied_share"])),
        ("groups without a ranked pair", f"{ties['constant_groups']} of {ties['groups']}"),
        ("failed", f"{failures['failed']} of {failures['measurements']}"),
        ("call, median / 90 % / longest", " / ".join(_seconds(latency[key]) for key in latency)),
        (f"lasro train, {rounds} rounds", _cost(cost["train_least"], cost["train"])),
        ("  its two evaluations", _cost(cost["evaluations"], cost["evaluations"])),
        *_cost_of_stage1(cost),
    ]


def _standard_deviation(variance: float | None) -> str:
    return "-" if variance is None else f"{math.sqrt(variance):.3g}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g} s"


def _cost_of_stage1(cost: dict[str, Any]) -> list[tuple[str, str]]:
    """Where the run begins with what stage 1 leaves; one from nothing needs none."""
    if cost["from_nothing"]:
        return []
    return [("lasro pretrain, with these settings", _cost(cost["pretrain"], cost["pretrain"]))]


def _cost(least: dict[str, Any], most: dict[str, Any]) -> str:
    from lasro_client.report.page import duration

    calls = _range(f"{least['calls']:,}", f"{most['calls']:,}")
    return f"{calls} calls, about {_range(duration(least['scoring_s']), duration(most['scoring_s']))} of scoring"


def _range(least: object, most: object) -> str:
    return str(most) if least == most else f"{least} to {most}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
