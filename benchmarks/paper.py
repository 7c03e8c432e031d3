"""`python -m benchmarks.paper`: the rows of the LaSRO paper at its own scale, for whoever has the GPU. docs/paper.md.

    cost                      calls, and memory as `lasro doctor` computes it, of each method; on any machine
    run REWARD METHOD         `lasro train configs/paper/REWARD.toml` by that method, resumed where it was stopped
    table FOLDER              what the runs below a folder gained, at which drift, for how many calls

One file of settings for each reward, so that model, prompts, LoRA, calls and drift budget are the same for every
method; what a method needs besides stands here. Source: LaSRO (Jia et al., CVPR 2025, arXiv 2411.15247).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import markdown_table
from benchmarks.random_weights import write_model
from lasro.config import RunSettings, load_config
from lasro.num_steps import title
from lasro_client.doctor.report import examine
from lasro_client.evaluation.estimate_text import estimate_text
from lasro_client.evaluation.num_steps import NUMBERS
from lasro_client.run.cost import images_per_round

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "paper"
REWARDS = ("image-reward", "attribute-binding", "text-alignment")
FLOAT32 = ('model.dtype="float32"', 'model.autocast="none"')
"""For ratios of likelihoods, which 16 bits cannot tell from 1."""
POLICY = (*FLOAT32, "train.generator_steps=1")
METHODS: dict[str, tuple[str, ...]] = {
    "lasro": (),
    "rlcm": ('method.type="rlcm"', *POLICY),
    "ddpo": ('method.type="ddpo"', *POLICY),
    "rebel": ('method.type="rebel"', *POLICY),
    "pso-online": ('method.type="pso-online"', *POLICY),
    "pso-offline": ('method.type="pso-offline"',),
    "diffusion-dpo": ('method.type="diffusion-dpo"',),
    "gors": ('method.type="gors"', 'method.sample_weight="none"'),
    "noise-tilting": ('method.type="noise-tilting"',),
}
"""Settings of each, besides those of the reward's file. A sample's weight in GORS could not be below 0."""
RATES = (3e-5, 1e-4, 3e-4)
"""Learning rates that every method is tuned on."""
GIB = 2**30


def settings_of(reward: str, method: str, settings: Sequence[str] = ()) -> RunSettings:
    """A row of the paper; raises ConfigError for settings that do not fit."""
    return load_config(CONFIGS / f"{reward}.toml", [*METHODS[method], *settings])


def without_weights(config: RunSettings, folder: Path) -> RunSettings:
    """The same of models in `folder` that have no weights, which is enough to compute memory from."""
    generator = {"path": str(write_model("ssd-1b", folder / "ssd-1b", dtype=None)), "unet": None}
    surrogate = config.surrogate
    if surrogate.backbone is not None:
        path = str(write_model("sdxl", folder / "sdxl", dtype=None))
        surrogate = surrogate.model_copy(update={"backbone": surrogate.backbone.model_copy(update={"path": path})})
    return config.model_copy(update={"model": config.model.model_copy(update=generator), "surrogate": surrogate})


def cost(methods: Iterable[str] = METHODS) -> str:
    """A Markdown table: the reward makes no difference to it."""
    head, rows = ("method", "client", "trainer", "rounds within the calls", "calls a round"), []
    for method in methods:
        config = settings_of(REWARDS[0], method)
        with tempfile.TemporaryDirectory(prefix="lasro-") as folder:
            report = examine(without_weights(config, Path(folder)), run=False)
        peaks = {row["process"]: 0 for row in report["memory"]}
        for row in report["memory"]:
            peaks[row["process"]] = max(peaks[row["process"]], row["total"])
        calls, budget = images_per_round(config.train, policies=2), config.budget.max_reward_calls
        memory = [f"{peaks[name] / GIB:.1f} GiB" if name in peaks else "none" for name in ("client", "trainer")]
        rows.append((method, *memory, "-" if budget is None else str(budget // calls), str(calls)))
    return markdown_table(head, rows)


def run(reward: str, method: str, seed: int, out: Path | None, settings: Sequence[str]) -> int:
    """Exit status of `lasro train`; the folder is runs/paper/REWARD/METHOD-SEED."""
    folder = out or Path("runs") / "paper" / reward / f"{method}-{seed}"
    command = [sys.executable, "-m", "lasro_client.cli.main", "train", str(CONFIGS / f"{reward}.toml")]
    given = [*METHODS[method], f"seed={seed}", *settings]
    command += ["--out", str(folder), *(part for setting in given for part in ("--set", setting))]
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": python_path}, check=False).returncode


def table(folder: Path) -> str:
    """Of all summary.json below the folder, a row for each run and reward."""
    head, rows = ("run", "reward", "steps", "base", "difference", "n", "drift", "calls"), []
    for file in sorted(folder.rglob("summary.json")):
        summary = json.loads(file.read_text(encoding="utf-8"))
        for reward, by_steps in summary["rewards"].items():
            for name, found in by_steps.items():
                moved = ((summary.get("held_out_drift") or {}).get(name) or {}).get("distance")
                rows.append(
                    (
                        str(file.parent.relative_to(folder)), reward, title(NUMBERS[name]).lower(),
                        _estimate(found["before"]), _estimate(found["difference"], "+"), str(found["n"]),
                        _estimate(moved), str(summary["reward_calls"]),
                    )
                )  # fmt: skip
    return markdown_table(head, rows)


def _estimate(estimate: dict[str, Any] | None, sign: str = "") -> str:
    return estimate_text(estimate, f"{sign}.3f", ".3f") or "-"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command")
    of_cost = commands.add_parser("cost", help="calls and computed memory")
    of_cost.add_argument("methods", nargs="*", default=list(METHODS))
    of_run = commands.add_parser("run", help="one row")
    of_run.add_argument("reward", choices=REWARDS)
    of_run.add_argument("method", choices=METHODS)
    of_run.add_argument("--seed", type=int, default=0)
    of_run.add_argument("--out", type=Path, help="default: runs/paper/REWARD/METHOD-SEED")
    of_run.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="repeatable")
    of_table = commands.add_parser("table", help="the runs so far")
    of_table.add_argument("folder", type=Path, nargs="?", default=Path("runs/paper"))
    given = parser.parse_args()
    if given.command == "run":
        sys.exit(run(given.reward, given.method, given.seed, given.out, given.settings))
    print(cost(given.methods) if given.command == "cost" else table(given.folder))


if __name__ == "__main__":
    main()
