"""The limit: what the true gradient through the decoder gains at each drift, on held-out prompts.

One path for each seed, by default LoRA and AdamW:

    L = c L_reg - mean r(D(z1)) / (2 s) - mean r(D(z2)) / (2 s)

s is the reward's standard deviation over noises within a prompt, so that c means the same for rewards of any scale.
c falls geometrically over the path: it begins near the base, and each new c sets out from where the one before it led,
which is far cheaper than a run for each. The averaged weights are measured every few updates.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.frontier.envelope import Point, limit_at, upper_envelope
from benchmarks.frontier.held_out import PROMPT_SPLITS, HeldOut
from benchmarks.frontier.rewards import REWARDS
from lasro.config import ModelSettings, RunSettings
from lasro.files import write_json
from lasro.methods.registry import create_trainer
from lasro.methods.true_gradient import TrueGradient
from lasro.models.lora import parameters_set
from lasro.models.registry import load_model
from lasro.num_steps import ONE_AND_TWO
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.sampling import draw_prompts, generator_for
from lasro_client.evaluation.paired_statistics import estimate

MODULE = "benchmarks.frontier.rewards"
RESULTS = Path("benchmarks/results/frontier")
TARGETS = (0.2, 0.4, 0.6, 0.8, 1.2)
"""Drifts of the table, in changes of seed."""
TRAIN_SETTINGS = ("batch_size", "two_step_every", "learning_rate", "warmup_steps", "ema")
LINE = (
    "{num_steps} step(s), seed {seed}, {updates:3} updates, c {regulariser_weight:7.3f}: "
    "drift {drift:.3f}, gain {gain:+.4f} ± {gain_sem:.4f}"
)


@dataclass(frozen=True)
class Descent:
    """How one path is trained; what does not stand here is default."""

    first_weight: float = 30.0
    """c at the first update."""
    last_weight: float = 1.0
    """c at the last one."""
    updates: int = 25
    every: int = 5
    """Updates between measurements."""
    batch_size: int = 8
    """Prompts of an update."""
    two_step_every: int = 2
    """Prompts for each that takes the second step too."""
    learning_rate: float = 1e-3
    warmup_steps: int = 5
    ema: float = 0.8
    """Decay of the averaged weights."""

    def weight(self, update: int) -> float:
        """c of an update, counted from 0."""
        return self.first_weight * (self.last_weight / self.first_weight) ** (update / max(self.updates - 1, 1))


def trainer_for(reward: str, deviation: float, descent: Descent, seed: int) -> GeneratorTrainer:
    """A fresh adapter that ascends the reward over its deviation within a prompt, on a model of its own."""
    train = {key: getattr(descent, key) for key in TRAIN_SETTINGS}
    tree = {
        "name": f"limit-{reward.replace('_', '-')}",
        "seed": seed,
        "prompts": {"train": "unused", "held_out": "unused"},
        "rewards": [{"name": "reward", "serve": f"{MODULE}:{reward}", "weight": 1 / deviation}],
        "method": {"type": "true-gradient", "regulariser_weight": descent.first_weight},
        "train": train,
    }
    config = RunSettings.model_validate(tree)
    return create_trainer(config, load_model(config.model))


def path(held_out: HeldOut, reward: str, descent: Descent, seed: int) -> Iterator[dict[str, Any]]:
    """Train along one path and yield a point for each number of steps after every `descent.every` updates."""
    trainer, draws = trainer_for(reward, held_out.deviation, descent, seed), generator_for(seed, "limit")
    for update in range(descent.updates):
        set_weight(trainer, descent.weight(update))
        trainer.step(draw_prompts(held_out.split.train, descent.batch_size, draws), None)
        if (update + 1) % descent.every:
            continue
        with parameters_set(trainer.parameters, trainer.average):
            measured = held_out.measure(trainer.model)
        for num_steps in ONE_AND_TWO:
            one = measured[num_steps]
            yield {
                "num_steps": num_steps,
                "seed": seed,
                "updates": update + 1,
                "regulariser_weight": round(descent.weight(update), 3),
                "drift": round(one.changes_of_seed, 5),
                "gain": one.gain.mean,
                "gain_sem": one.gain.sem,
                "n": one.gain.n,
                "drift_figure": one.drift,
            }


def set_weight(trainer: GeneratorTrainer, weight: float) -> None:
    """Go on with another c."""
    assert isinstance(trainer.method, TrueGradient)
    trainer.method.settings = trainer.method.settings.model_copy(update={"regulariser_weight": weight})


def find_limit(reward: str, prompts: str, seeds: Sequence[int], descent: Descent, file: Path) -> dict[str, Any]:
    """Train a path for each seed and add it to the file, in place of earlier ones of the same seed and settings."""
    held_out = HeldOut(load_model(ModelSettings()), REWARDS[reward], PROMPT_SPLITS[prompts]())
    result = {"reward": reward, "prompts": prompts, "within_prompt_deviation": held_out.deviation, "paths": []}
    result["base"] = {str(steps): estimate(held_out.base_rewards[steps]).as_dict() for steps in ONE_AND_TWO}
    if file.exists():
        result["paths"] = json.loads(file.read_text(encoding="utf-8"))["paths"]
    for seed in seeds:
        one: dict[str, Any] = {"seed": seed, "descent": asdict(descent), "cpu_s": 0.0, "points": []}
        others = [each for each in result["paths"] if (each["seed"], each["descent"]) != (seed, one["descent"])]
        started = time.process_time()
        for point in path(held_out, reward, descent, seed):
            one["points"].append(point)
            one["cpu_s"] = round(time.process_time() - started, 1)
            result["paths"] = [*others, one]
            result["true_gradient"] = on_the_limit(result["paths"])
            write_json(file, result)
            print(LINE.format(**point), flush=True)
    return result


def on_the_limit(paths: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the points of all paths those on the limit of their seed and number of steps, and the farthest of each."""
    points = [point for one in paths for point in one["points"]]
    kept = []
    for key in sorted({(point["num_steps"], point["seed"]) for point in points}):
        of_key = [point for point in points if (point["num_steps"], point["seed"]) == key]
        envelope = set(upper_envelope([_point(point) for point in of_key]))
        farthest = max(of_key, key=lambda point: point["drift"])
        kept += [point for point in of_key if _point(point) in envelope or point is farthest]
    return sorted(kept, key=lambda point: (point["num_steps"], point["seed"], point["drift"]))


def _point(point: dict[str, Any]) -> Point:
    return Point(point["drift"], point["gain"], point["gain_sem"])


def points_of(result: dict[str, Any], num_steps: int) -> dict[int, list[Point]]:
    """The points of a limit file by seed."""
    found: dict[int, list[Point]] = {}
    for point in result["true_gradient"]:
        if point["num_steps"] == num_steps:
            found.setdefault(point["seed"], []).append(_point(point))
    return found


def limits_at(result: dict[str, Any], num_steps: int, drift: float) -> list[Point]:
    """The limit at a drift by each seed that has reached it."""
    found = []
    for points in points_of(result, num_steps).values():
        limit = limit_at(upper_envelope(points), drift, max(point.drift for point in points))
        if limit is not None:
            found.append(limit)
    return found


def limit_table(result: dict[str, Any]) -> str:
    """Gain at each target by number of steps: mean over seeds, their spread (standard deviation), and how many."""
    lines = ["| num_steps | " + " | ".join(f"drift {target}" for target in TARGETS) + " |"]
    lines.append("| --- |" + " --- |" * len(TARGETS))
    for num_steps in ONE_AND_TWO:
        cells = []
        for target in TARGETS:
            gains = [limit.gain for limit in limits_at(result, num_steps, target)]
            spread = f" ± {stdev(gains):.4f}" if len(gains) > 1 else ""
            cells.append(f"{mean(gains):+.4f}{spread} ({len(gains)})" if gains else "not reached")
        lines.append(f"| {num_steps} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
