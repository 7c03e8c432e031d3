"""Human Preference Score v2 (Wu et al. 2023, arXiv 2306.09341): a CLIP ViT-H trained on human choices. Extra: `clip`.

The cosine of image and prompt, as in hpsv2/img_score.py of github.com/tgxs002/HPSv2 at 866735ec; images are fitted
into the square on black, as transform.py there does with `resize_longest_max`. There the image is resized as a float
tensor by torchvision, here as bytes by Pillow: features differ by rounding.

Upstream publishes open_clip checkpoints in pickle form only. Convert one once, see `convert.py`, and set
`LASRO_HPS_V2_MODEL` to the folder.

Code: transformers (Apache-2.0). Weights: xswu/HPSv2 (Apache-2.0), v2.0 or v2.1.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from lasro.reward_sdk import reward
from lasro_rewards.clip_features import clip_features
from lasro_rewards.pixels import padded


@reward
def hps_v2(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
    """Cosine in [-1, 1], usually 0.2 to 0.35, higher is better."""
    return clip_features("hps_v2_model").cosines(images, prompts, padded)
