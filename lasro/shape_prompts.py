"""The shape prompts in `configs/prompts`, drawn from fixed seeds. Those of training are contrast sets.

python -m lasro.shape_prompts configs/prompts
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lasro.shapes import NounPhrase, ShapePrompt, caption, parse_prompt, random_scene

SEED = 0
LIGHT_BACKGROUNDS = ("white", "cream", "sky", "mint")
WHITE_NAMED = 0.3  # share of white backgrounds that the prompt names, as in the bundled model's captions
Pair = frozenset[NounPhrase]


def prompt_files() -> dict[str, list[str]]:
    """The lines of each file. No pair of objects occurs in two files, not even in the other order or in a contrast."""
    rng = np.random.default_rng(SEED)
    used: set[Pair] = set()
    held_out = distinct_prompts(rng, 256, LIGHT_BACKGROUNDS, used)
    navy = distinct_prompts(rng, 64, ("navy",), used)
    train = [with_exchanged_colors(prompt) for prompt in distinct_prompts(rng, 2048, LIGHT_BACKGROUNDS, set(used))]
    kept = [(prompt, other) for prompt, other in train if objects(other) not in used]
    lines = [json.dumps({"prompt": prompt, "contrast": [{"prompt": other}]}) for prompt, other in kept[:1024]]
    return {"shapes-held-out.txt": held_out, "shapes-navy.txt": navy, "shapes-train.jsonl": lines}


def objects(text: str) -> Pair:
    """What a shape prompt asks for, in no order."""
    return frozenset(_parsed(text).phrases)


def with_exchanged_colors(text: str) -> tuple[str, str]:
    """A prompt of two objects, and the same with their colours exchanged."""
    prompt = _parsed(text)
    first, second = prompt.phrases
    phrases = NounPhrase(second.color, first.shape), NounPhrase(first.color, second.shape)
    return text, replace(prompt, phrases=phrases).text()


def _parsed(text: str) -> ShapePrompt:
    prompt = parse_prompt(text)
    if prompt is None:
        raise ValueError(f"got {text!r}, expected a shape prompt")
    return prompt


def distinct_prompts(rng: np.random.Generator, count: int, backgrounds: Sequence[str], used: set[Pair]) -> list[str]:
    """`count` two-object prompts whose pairs of objects are not in `used`; adds them to it."""
    prompts = []
    while len(prompts) < count:
        scene = random_scene(rng, 2, backgrounds)
        pair = frozenset(NounPhrase(spec.color, spec.shape) for spec in scene.objects)
        if pair not in used:
            used.add(pair)
            prompts.append(caption(scene, name_white=rng.random() < WHITE_NAMED))
    return prompts


def write_prompt_files(folder: Path) -> None:
    for name, lines in prompt_files().items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_prompt_files(Path(sys.argv[1]))
