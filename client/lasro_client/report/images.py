"""Which images the report shows, and how they get into it: small, inline, and picked by stated rules."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from lasro.errors import WireError
from lasro.images import MAX_PIXELS, decode_image
from lasro.num_steps import NumSteps
from lasro_client.evaluation.result import IMAGE_FOLDERS
from lasro_client.report.run_data import RunData, read_strings

# About 230 images at most and 11 kB each as base64 text keep the whole report under 4 MB.
EDGE, BYTES_PER_IMAGE = 256, 8_000
QUALITIES = (90, 75, 50, 25, 5)
RANDOM_PAIRS, EXTREME_PAIRS = 12, 6
DRIFT_PAIRS = 12
PROGRESS_PROMPTS, PROGRESS_ROUNDS = 8, 7
SELECTION_SEED = 0


@dataclass(frozen=True)
class Pair:
    """The same prompt and seed before and after; an image is None where its file is missing."""

    prompt: str
    before: str | None
    after: str | None
    reward_before: float | None = None
    reward_after: float | None = None
    vetoed_before: bool = False
    vetoed_after: bool = False


@dataclass(frozen=True)
class PairGroup:
    """Pairs picked by one rule."""

    title: str
    rule: str
    pairs: list[Pair]


@dataclass(frozen=True)
class Strip:
    """One prompt and seed over the rounds."""

    prompt: str
    images: list[str | None]


def data_uri(path: Path) -> str | None:
    """The image as an inline WebP no larger than EDGE pixels and BYTES_PER_IMAGE; None where it cannot be read."""
    try:
        return _data_uri(path, path.stat().st_mtime_ns)
    except (OSError, WireError):
        return None


@lru_cache(maxsize=512)
def _data_uri(path: Path, mtime_ns: int) -> str:
    """Cached by modification time: the report is rewritten many times with mostly the same images."""
    image = decode_image(path.read_bytes(), MAX_PIXELS)
    image.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    content = b""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=4)
        content = buffer.getvalue()
        if len(content) <= BYTES_PER_IMAGE:
            break
    return "data:image/webp;base64," + base64.b64encode(content).decode("ascii")


def pick(gains: Sequence[float | None], count: int) -> dict[str, list[int]]:
    """Indices of `count` largest gains and losses, best and worst first; only real gains and real losses."""
    known = sorted((gain, -index) for index, gain in enumerate(gains) if gain is not None)
    losses = [-index for gain, index in known if gain < 0][:count]
    best = [-index for gain, index in reversed(known) if gain > 0][:count]
    return {"gains": best, "losses": losses}


def random_pick(total: int, count: int) -> list[int]:
    """Random indices that depend on no score; reports of equally many prompts have the same ones."""
    return sorted(random.Random(SELECTION_SEED).sample(range(total), min(count, total)))


def pair_groups(run: RunData, num_steps: NumSteps) -> list[PairGroup]:
    """The random sample, the largest gains and the largest losses. Empty until both evaluations are in."""
    if run.before is None or not run.gains(num_steps):
        return []
    total = len(run.before.prompts)
    chosen = random_pick(total, RANDOM_PAIRS)
    rule = f"{len(chosen)} of {total} held-out prompts, drawn without looking at any score."
    groups = [PairGroup("A random sample", rule, _pairs(run, num_steps, chosen))]
    extremes = pick(run.gains(num_steps), EXTREME_PAIRS)
    for key, title in (("gains", "Largest gains"), ("losses", "Largest losses")):
        if indices := extremes[key]:
            moved = "rose" if key == "gains" else "fell"
            rule = f"The {len(indices)} prompts whose reward {moved} most: not typical."
            groups.append(PairGroup(title, rule, _pairs(run, num_steps, indices)))
    return groups


def _pairs(run: RunData, num_steps: NumSteps, indices: Sequence[int]) -> list[Pair]:
    assert run.before is not None
    assert run.after is not None
    before, after = (run.totals(evaluation, num_steps) for evaluation in (run.before, run.after))
    vetoed_before, vetoed_after = (run.vetoed(evaluation, num_steps) for evaluation in (run.before, run.after))
    folder, name = run.folder / "evaluation", IMAGE_FOLDERS[num_steps]
    return [
        Pair(
            prompt=run.before.prompts[index],
            before=data_uri(folder / "before" / name / f"{index:05d}.png"),
            after=data_uri(folder / "after" / name / f"{index:05d}.png"),
            reward_before=before[index],
            reward_after=after[index],
            vetoed_before=vetoed_before[index],
            vetoed_after=vetoed_after[index],
        )
        for index in indices
    ]


def drift_pairs(run: RunData) -> list[Pair]:
    """The first drift prompts, drawn by the base and the adapted model; empty before they are drawn."""
    folder = run.folder / "drift"
    prompts = read_strings(folder / "prompts.json")
    shown = sorted((folder / "after").glob("*.png"))[:DRIFT_PAIRS]
    return [
        Pair(
            prompt=prompts[int(path.stem)] if int(path.stem) < len(prompts) else f"prompt {int(path.stem)}",
            before=data_uri(folder / "before" / path.name),
            after=data_uri(path),
        )
        for path in shown
        if path.stem.isdigit()
    ]


def spread(rounds: Sequence[int], count: int) -> list[int]:
    """At most `count` of the rounds, evenly spread, first and last included."""
    if len(rounds) <= count:
        return list(rounds)
    return [rounds[round(i * (len(rounds) - 1) / (count - 1))] for i in range(count)]


def progress_strips(run: RunData) -> tuple[list[str], list[Strip]]:
    """Column titles and, per watched prompt, an image for each; both empty before the first were drawn.

    The watched prompts are the first held-out ones with the seeds of the evaluation, so the base's images are there.
    """
    folder = run.folder / "progress"
    prompts = read_strings(folder / "prompts.json")[:PROGRESS_PROMPTS]
    numbered = {int(path.name): path for path in folder.glob("[0-9]*") if path.name.isdigit()}
    rounds = spread(sorted(numbered), PROGRESS_ROUNDS)
    if not rounds:
        return [], []
    base = run.folder / "evaluation" / "before" / IMAGE_FOLDERS[max(run.steps)]
    strips = []
    for index, prompt in enumerate(prompts):
        paths = [base / f"{index:05d}.png", *(numbered[number] / f"{index}.png" for number in rounds)]
        strips.append(Strip(prompt, [data_uri(path) for path in paths]))
    return ["base", *(f"round {number}" for number in rounds)], strips
