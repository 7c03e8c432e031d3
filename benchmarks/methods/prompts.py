"""What is trained on, what a learning rate is chosen by, and what is measured on: no prompt is in two of these.

Of shapes, some colour-shape pairs are in no prompt that is trained on: `UNSEEN_PAIRS`, each with a colour and a shape
of its own, so that every colour and every shape is seen, and only the pair is new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.frontier.held_out import EMOJI_HELD_OUT, PROMPTS
from lasro.demo.shapes import COLORS, SHAPES, NounPhrase, parse_prompt
from lasro.training.prompts import Prompt, read_prompts

UNSEEN_PAIRS = frozenset(NounPhrase(color, shape) for color, shape in zip(COLORS, SHAPES, strict=False))
TUNING_SHAPES, TUNING_EMOJI = 32, 8
TUNING, HELD_OUT, UNSEEN, OTHER_KIND = "tuning", "held out", "unseen pairs", "another kind"
"""Names of what is measured on; of a model trained on shapes another kind are emoji, and the other way round."""


@dataclass(frozen=True)
class PromptSets:
    """Prompts of a reward."""

    train: list[Prompt]
    tuning: list[Prompt]
    """A learning rate is chosen by these, and a run is kept to its drift budget by them."""
    measured: dict[str, list[Prompt]]
    """What the results are of, by name; the first is what the tables of gains are of."""


def names_unseen(prompt: Prompt) -> bool:
    """Whether a prompt of shapes asks for a pair that is not trained on."""
    parsed = parse_prompt(prompt.text)
    return parsed is not None and not UNSEEN_PAIRS.isdisjoint(parsed.phrases)


def shapes() -> PromptSets:
    """Two coloured shapes; the emoji held out of `emoji` are another kind."""
    train, held_out = (read_prompts(PROMPTS / f"shapes-{name}.txt") for name in ("train", "held-out"))
    seen, unseen = _parted(held_out)
    other_kind = read_prompts(PROMPTS / "emoji-drift.txt")[-EMOJI_HELD_OUT:]
    measured = {HELD_OUT: seen[TUNING_SHAPES:], UNSEEN: unseen, OTHER_KIND: other_kind}
    return PromptSets(_parted(train)[0], seen[:TUNING_SHAPES], measured)


def emoji() -> PromptSets:
    """Single emoji; shapes are another kind, and no pair is unseen."""
    every = read_prompts(PROMPTS / "emoji-drift.txt")
    train, held_out = every[:-EMOJI_HELD_OUT], every[-EMOJI_HELD_OUT:]
    other_kind = read_prompts(PROMPTS / "shapes-held-out.txt")
    return PromptSets(train[:-TUNING_EMOJI], train[-TUNING_EMOJI:], {HELD_OUT: held_out, OTHER_KIND: other_kind})


def _parted(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Those of seen pairs alone, and the others."""
    return [one for one in prompts if not names_unseen(one)], [one for one in prompts if names_unseen(one)]


PROMPT_SETS: dict[str, Callable[[], PromptSets]] = {"shapes": shapes, "emoji": emoji}
