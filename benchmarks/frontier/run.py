"""A run as a stranger would start it: a TOML file with a name, prompts and one reward, and `lasro train`.

What it exports is then measured on the held-out prompts, on other noise than the run's, and compared with the limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.frontier.envelope import share_of_limit
from benchmarks.frontier.held_out import PROMPT_SPLITS, HeldOut, Measured, PromptSplit
from benchmarks.frontier.limit import MODULE, RESULTS, points_of
from benchmarks.frontier.rewards import REWARDS
from lasro.config import load_config
from lasro.files import write_json
from lasro.num_steps import ONE_AND_TWO, NumSteps
from lasro_client.evaluation.adapted_model import load_adapted
from lasro_client.run.stopped import STOPPED_FILE

ROOT = Path(__file__).parents[2]
RESULT_FILE = "frontier.json"


def measured_run(reward: str, prompts: str, seed: int, out: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Start the run in `out`/run, wait for it, measure its adapter, and write all of it to `out`/frontier.json."""
    out.mkdir(parents=True, exist_ok=True)
    split = PROMPT_SPLITS[prompts]()
    toml = write_run(out, reward.replace("_", "-"), f"{MODULE}:{reward}", split)
    status, seconds = train(toml, out, [f"seed={seed}", *settings])
    folder = out / "run"
    result: dict[str, Any] = {"reward": reward, "prompts": prompts, "seed": seed, "settings": list(settings)}
    result |= {"status": status, "minutes": round(seconds / 60, 2), "ended": how_it_ended(folder)}
    result["calls"] = calls_by_phase(read_lines(folder / "log.jsonl"))
    if (folder / "adapter").exists():
        model, _ = load_adapted(load_config(toml, settings).model, None, partial=False)
        held_out = HeldOut(model, REWARDS[reward], split)
        model.load_lora(folder / "adapter")
        measured = held_out.measure(model)
        result["measured"] = {str(steps): measured[steps].as_dict() for steps in ONE_AND_TWO}
        result["share_of_limit"] = shares_of_limit(RESULTS / f"{reward}-{prompts}.json", measured)
    write_json(out / RESULT_FILE, result)
    return result


def write_run(out: Path, name: str, serve: str, split: PromptSplit) -> Path:
    """The smallest TOML file of a run by the reward `serve` (`module:function`), with its prompt files."""
    for part, prompts in (("train", split.train), ("held-out", split.held_out)):
        (out / f"{part}.txt").write_text("\n".join(prompt.text for prompt in prompts) + "\n", encoding="utf-8")
    text = f"""name = "{name}"

[prompts]
train = "train.txt"
held_out = "held-out.txt"

[[rewards]]
name = "{name}"
serve = "{serve}"
"""
    (out / "run.toml").write_text(text, encoding="utf-8")
    return out / "run.toml"


def train(toml: Path, out: Path, settings: Sequence[str]) -> tuple[int, float]:
    """Exit status and seconds of `lasro train`; what it prints goes to `out`/train.log."""
    arguments = [part for setting in settings for part in ("--set", setting)]
    with (out / "train.log").open("w", encoding="utf-8") as log:
        return lasro(["train", str(toml), "--out", str(out / "run"), *arguments], log, log)


def lasro(arguments: Sequence[str], output: IO[str], errors: IO[str]) -> tuple[int, float]:
    """Exit status and seconds of the command line with these arguments; it is left to end by itself when this ends."""
    command = [sys.executable, "-m", "lasro_client.cli.main", *arguments]
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment, started = os.environ | {"PYTHONPATH": python_path}, time.monotonic()
    with subprocess.Popen(command, stdout=output, stderr=errors, env=environment) as process:
        try:
            process.wait()
        except KeyboardInterrupt:  # it has had the signal too, and keeps what is done
            process.wait()
            raise
        except SystemExit:  # by SIGTERM, which it has not had
            process.terminate()
            process.wait()
            raise
    return process.returncode, time.monotonic() - started


def calls_by_phase(lines: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Reward calls of a log.jsonl by phase, in its order: `phase` of a line, or else its stage.

    Rounds of stage 2 before the first update of the generator are a phase of their own, `warm-up`.
    """
    calls: dict[str, int] = {}
    before = 0
    for line in lines:
        stage = "warm-up" if line["stage"] == "train" and not line["policy_version"] else line["stage"]
        phase = line.get("phase") or stage
        calls[phase] = calls.get(phase, 0) + line["reward_calls"] - before
        before = line["reward_calls"]
    return calls


def how_it_ended(folder: Path) -> str:
    """In the run's own words: of its summary, or why it stopped without one."""
    for name, key in (("summary.json", "ended"), (STOPPED_FILE, "reason")):
        if (folder / name).exists():
            return json.loads((folder / name).read_text(encoding="utf-8"))[key] or "all rounds done"
    return "without a summary; see train.log"


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; none where there is no file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def shares_of_limit(file: Path, measured: Mapping[NumSteps, Measured]) -> dict[str, list[float]] | None:
    """Of the limit at the run's own drift, a share for each seed of the limit, by number of steps; None without a file.

    Seeds whose paths did not drift so far are left out.
    """
    if not file.exists():
        return None
    limits = json.loads(file.read_text(encoding="utf-8"))
    shares = {}
    for steps in ONE_AND_TWO:
        gain, drift = measured[steps].gain.mean, measured[steps].changes_of_seed
        assert gain is not None
        found = [share_of_limit(gain, drift, points) for points in points_of(limits, steps).values()]
        shares[str(steps)] = [share for share in found if share is not None]
    return shares
