"""Data sets of prompts by short name, as far as their facts could be looked up; docs/prompts.md says what could not."""

from __future__ import annotations

from typing import NamedTuple


class KnownDataset(NamedTuple):
    """Where prompts are on the hub, and what is needed to read them."""

    hub_id: str
    column: str
    licence: str
    """As the hub's page of these files states it; "none stated" where it states none."""
    source: str
    """Who made the prompts."""
    split: str | None = None
    """None where a run must name one, or where a subset has only one."""
    file: str | None = None
    """The file of the repository that has the prompts, where what the card names has none."""


KNOWN_DATASETS = {
    "parti-prompts": KnownDataset(
        "nateraw/parti-prompts", "Prompt", "Apache-2.0", "https://github.com/google-research/parti", split="train"
    ),
    "drawbench": KnownDataset(
        "sayakpaul/drawbench", "Prompts", "not found", "https://imagen.research.google", split="train"
    ),
    "t2i-compbench": KnownDataset(
        "NinaKarine/t2i-compbench", "text", "MIT", "https://github.com/Karine-Huang/T2I-CompBench"
    ),
    "pick-a-pic": KnownDataset(
        "yuvalkirstain/pickapic_v1_no_images", "caption", "none stated", "https://github.com/yuvalkirstain/PickScore"
    ),
    "pick-a-pic-v2": KnownDataset(
        "yuvalkirstain/pickapic_v2_no_images", "caption", "none stated", "https://github.com/yuvalkirstain/PickScore"
    ),
    "mjhq-30k": KnownDataset(
        "playgroundai/MJHQ-30K",
        "prompt",
        "none stated",
        "https://huggingface.co/datasets/playgroundai/MJHQ-30K",
        file="meta_data.json",
    ),
}
