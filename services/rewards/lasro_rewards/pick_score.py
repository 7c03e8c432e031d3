"""PickScore: a CLIP ViT-H fine-tuned on which of two images people picked (Kirstain et al. 2023). Extra: `clip`.

`exp(logit_scale) * cosine`, as in README.md of github.com/yuvalkirstain/PickScore at 013b54d7. Only differences within
a prompt mean something. Some trainers divide by 26 to come near [0, 1]; this is the undivided score.

Code: transformers (Apache-2.0). Weights: yuvalkirstain/PickScore_v1, whose card states no licence; the ViT-H that it
started from is MIT.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from lasro.reward_sdk import reward
from lasro_rewards.clip_features import clip_features


@reward
def pick_score(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
    """Scaled cosine, usually 15 to 25, higher is better."""
    features = clip_features("pick_score_model")
    return [features.scale * cosine for cosine in features.cosines(images, prompts)]
