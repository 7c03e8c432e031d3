"""Best of N: what a run's reward calls buy when the held-out images are drawn, with no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.frontier.held_out import FIRST_SEEDS
from benchmarks.frontier.run import lasro
from benchmarks.methods.plan import Run
from benchmarks.methods.prompts import HELD_OUT, PROMPT_SETS
from lasro.num_steps import JSON_NAMES, ONE_AND_TWO

SEEDS_APART = 100_000


def images_each(calls: int, prompts: int) -> int:
    """N: images of a prompt and number of steps, at which as many calls are spent on all of them; at least 2."""
    return max(2, calls // (len(ONE_AND_TWO) * prompts))


def measure_best_of(run: Run, out: Path) -> dict[str, Any]:
    """Draw and score by `lasro evaluate`, in a folder; what it found, as the other runs say it."""
    prompts = PROMPT_SETS[run.reward.prompts]().measured[HELD_OUT][: run.scale.prompts]
    count = images_each(run.calls, len(prompts))
    file, found = out / "held-out.txt", out / "evaluation.json"
    file.write_text("\n".join(prompt.text for prompt in prompts) + "\n", encoding="utf-8")
    arguments = ["evaluate", "--prompts", str(file), "--reward", f"{run.reward.name}={run.reward.serve}"]
    arguments += ["--best-of", str(count), "--seed", str(FIRST_SEEDS[0] + SEEDS_APART * run.seed), "--json"]
    with found.open("w", encoding="utf-8") as output, (out / "train.log").open("w", encoding="utf-8") as errors:
        status, seconds = lasro(arguments, output, errors)
    result: dict[str, Any] = {"status": status, "minutes": round(seconds / 60, 2), "ended": f"best of {count}"}
    if status == 0:
        table = json.loads(found.read_text(encoding="utf-8").splitlines()[-1])["rewards"][run.reward.name]
        rows = {str(steps): table[JSON_NAMES[steps]] for steps in ONE_AND_TWO}
        gains = {
            key: {"gain": row["difference"] | {"n": row["n"], "failed": row["failed"]}} for key, row in rows.items()
        }
        result |= {"calls": {"drawing": count * len(ONE_AND_TWO) * len(prompts)}, "measured": {HELD_OUT: gains}}
    return result
