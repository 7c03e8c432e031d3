"""CLIP score: cosine of image and prompt under CLIP ViT-L/14. Extra: `clip`.

As CLIP_similarity.py of T2I-CompBench (github.com/Karine-Huang/T2I-CompBench at 7710d059, CLIPScore_eval/), which uses
ViT-B/32: set `LASRO_CLIP_MODEL=openai/clip-vit-base-patch32` for that. The CLIPScore of Hessel et al. 2021
(arXiv 2104.08718) is `2.5 * max(cosine, 0)` under ViT-B/32; only the scale differs.

Code: transformers (Apache-2.0). Weights: openai/clip-vit-large-patch14 (MIT).
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from lasro.reward_sdk import reward
from lasro_rewards.clip_features import clip_features


@reward
def clip_score(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
    """Cosine in [-1, 1]; in practice 0.1 for an unrelated prompt and 0.3 for a fitting one."""
    return clip_features("clip_model").cosines(images, prompts)
