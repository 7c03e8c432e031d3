"""audit.png: what a reward likes. Per prompt its worst and its best image, of each number of steps.

Shape legend: P prompts, G numbers of denoising steps, K seeds, R repeats.
"""

from __future__ import annotations

import io
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from lasro.images import MAX_PIXELS, decode_image
from lasro.num_steps import title as step_title
from lasro.training.sampling import Group

EDGE_PX, GAP_PX, MARGIN_PX = 160, 10, 24
TEXT_PX, TITLE_PX, LINE_PX = 14, 22, 20
FEWEST_COLUMNS = 4
"""So that the sentences fit."""
ROW_PX = 2 * LINE_PX + EDGE_PX + LINE_PX + GAP_PX
PAPER, INK, FAINT, BLANK, RULE = "#ffffff", "#1c1c1c", "#6a6a6a", "#eeeeee", "#d0d0d0"
VERDICTS = {"yes": "#1a7f37", "doubtful": "#9a6700", "no": "#cf222e"}


def draw_picture(summary: dict[str, Any], groups: Sequence[Group], rewards_PGKR: np.ndarray) -> bytes:
    """PNG: verdict and findings, then a row per prompt; below each image the mean of its repeats, and their range."""
    text, title = ImageFont.load_default(TEXT_PX), ImageFont.load_default(TITLE_PX)
    columns = [f"{step_title(n).lower()}: {end}" for n in sorted(set(groups[0].stages)) for end in ("worst", "best")]
    width_px = _left(max(FEWEST_COLUMNS, len(columns))) - GAP_PX + MARGIN_PX
    sentences = [_figures(summary, rewards_PGKR), *(_sentence(finding) for finding in summary["findings"])]
    lines = [line for sentence in sentences for line in _wrapped(sentence, text, 3, width_px)]
    head_px = MARGIN_PX + 2 * LINE_PX + LINE_PX * len(lines) + GAP_PX
    height_px = head_px + LINE_PX + ROW_PX * len(groups) + MARGIN_PX
    image = Image.new("RGB", (width_px, height_px), PAPER)
    draw = ImageDraw.Draw(image)
    heading = f"{summary['reward']}, version {summary['version']}: "
    draw.text((MARGIN_PX, MARGIN_PX), heading, INK, title)
    verdict_px = MARGIN_PX + title.getlength(heading)
    draw.text((verdict_px, MARGIN_PX), f"trainable: {summary['trainable']}", VERDICTS[summary["trainable"]], title)
    for index, line in enumerate(lines):
        draw.text((MARGIN_PX, MARGIN_PX + 2 * LINE_PX + index * LINE_PX), line, INK, text)
    for column, name in enumerate(columns):
        draw.text((_left(column), head_px), name, FAINT, text)
    for row, group in enumerate(groups):
        _draw_row(image, head_px + LINE_PX + row * ROW_PX, row + 1, group, rewards_PGKR[row], text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def extremes(rewards_KR: np.ndarray) -> list[tuple[int, float] | None]:
    """Seed and mean reward of the worst and of the best image that has a score; [None, None] where none has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy warns of a mean of nothing
        mean_K = np.nanmean(rewards_KR, axis=1)
    order = [int(seed) for seed in np.argsort(mean_K, kind="stable") if np.isfinite(mean_K[seed])]
    return [(seed, float(mean_K[seed])) for seed in (order[0], order[-1])] if order else [None, None]


def _draw_row(
    image: Image.Image,
    top_px: int,
    number: int,
    group: Group,
    rewards_GKR: np.ndarray,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    draw = ImageDraw.Draw(image)
    prompt = _wrapped(f"{number}. {group.prompt.text}", font, 1, image.width)[0]
    draw.text((MARGIN_PX, top_px + LINE_PX), prompt, INK, font)
    cells = [(steps, found) for steps, rewards_KR in enumerate(rewards_GKR) for found in extremes(rewards_KR)]
    for column, (steps, found) in enumerate(cells):
        left_px, image_top_px = _left(column), top_px + 2 * LINE_PX
        if found is None:
            draw.rectangle((left_px, image_top_px, left_px + EDGE_PX - 1, image_top_px + EDGE_PX - 1), BLANK)
            draw.text((left_px, image_top_px + EDGE_PX + 2), "no score", FAINT, font)
            continue
        seed, reward = found
        drawn = decode_image(group.images[steps * len(rewards_GKR[steps]) + seed], MAX_PIXELS)
        shown = ImageOps.contain(drawn, (EDGE_PX, EDGE_PX))
        image.paste(shown, (left_px, image_top_px))
        # Many images are white at their edges, and so is the paper.
        draw.rectangle((left_px - 1, image_top_px - 1, left_px + shown.width, image_top_px + shown.height), None, RULE)
        label = _label(reward, rewards_GKR[steps, seed])
        draw.text((left_px, image_top_px + EDGE_PX + 2), label, INK, font)


def _left(column: int) -> int:
    return MARGIN_PX + column * (EDGE_PX + GAP_PX)


def _label(mean: float, rewards_R: np.ndarray) -> str:
    low, high = np.nanmin(rewards_R), np.nanmax(rewards_R)
    return f"{mean:.3g}" if low == high else f"{mean:.3g} ({low:.3g} to {high:.3g})"


def _figures(summary: dict[str, Any], rewards_PGKR: np.ndarray) -> str:
    prompts, _, seeds, repeats = rewards_PGKR.shape
    parts = [f"{prompts} prompts, {seeds} seeds, each image scored {repeats} times"]
    if (accuracy := summary["spread"]["as_ranked"]["best_pair_accuracy"]) is not None:
        parts.append(f"noise lets at best {accuracy:.0%} of the pairs be ranked right")
    if (tied := summary["ties"]["tied_share"]) is not None:
        parts.append(f"{tied:.0%} are ties")
    return "; ".join(parts) + "."


def _sentence(finding: dict[str, str]) -> str:
    return f"{finding['name']} ({finding['level']}): {finding['says']}"


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, most: int, picture_px: int) -> list[str]:
    """At most that many lines that fit the picture, broken at spaces; the last ends in dots where text is left."""
    width_px = picture_px - 2 * MARGIN_PX
    lines, words = [""], text.split()
    for index, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width_px or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < most:
            lines.append(word)
        else:
            lines[-1] = _shortened(f"{lines[-1]} {' '.join(words[index:])}", font, width_px)
            return lines
    return [_shortened(line, font, width_px) for line in lines]


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    if font.getlength(text) <= width_px:
        return text
    fits = bisect_right(range(len(text)), width_px, key=lambda length: font.getlength(text[:length] + "..."))
    return text[: max(0, fits - 1)] + "..."
