"""The shape prompts in `configs/prompts`, drawn from fixed seeds.

python -m lasro.demo.prompts configs/prompts
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lasro.demo.shapes import NounPhrase, caption, random_scene

SEED = 0
LIGHT_BACKGROUNDS = ("white", "cream", "sky", "mint")
WHITE_NAMED = 0.3  # share of white backgrounds that the prompt names, as in the bundled model's captions
Pair = frozenset[NounPhrase]


def prompt_sets() -> dict[str, list[str]]:
    """Two-object prompts by file name. No pair of objects occurs in two files, not even in the other order."""
    rng = np.random.default_rng(SEED)
    used: set[Pair] = set()
    return {
        "shapes-held-out.txt": distinct_prompts(rng, 256, LIGHT_BACKGROUNDS, used),
        "shapes-train.txt": distinct_prompts(rng, 768, LIGHT_BACKGROUNDS, used),
    }


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
    for name, prompts in prompt_sets().items():
        (folder / name).write_text("\n".join(prompts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_prompt_files(Path(sys.argv[1]))
