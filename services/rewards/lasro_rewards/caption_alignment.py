"""Text alignment by captioning: describe the image, compare the description with the prompt. Extra: `blip`.

After the text similarity of Attend-and-Excite (github.com/yuval-alaluf/Attend-and-Excite at 5f10e15d,
metrics/blip_captioning_and_clip_similarity.py): the cosine of caption and prompt under CLIP's text encoder. Upstream
uses LAVIS's BLIP base captioner, CLIP ViT-B/16 and the mean over 80 templates of the prompt; here BLIP large, ViT-L/14
and the prompt itself, so values are not comparable with published ones.

Code: transformers (Apache-2.0). Weights: Salesforce/blip-image-captioning-large (BSD-3-Clause),
openai/clip-vit-large-patch14 (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from lasro.reward_sdk import reward
from lasro_rewards.clip_features import clip_features
from lasro_rewards.packages import needed
from lasro_rewards.pixels import squeezed
from lasro_rewards.weights import device, load_model, load_tokenizer

EXTRA = "blip"
SETTING = "caption_model"
NUM_BEAMS, MAX_TOKENS, MAX_BATCH = 3, 30, 8


@reward
def caption_alignment(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
    """Cosine of caption and prompt in [-1, 1], usually 0.5 to 0.95, higher is better."""
    if not images:
        return []
    features = clip_features("clip_model", EXTRA)
    return np.einsum("bd,bd->b", features.of_texts(captions(images)), features.of_texts(prompts)).tolist()


def captions(images: Sequence[Image.Image]) -> list[str]:
    """One sentence per image, by beam search: the same image gets the same sentence."""
    torch = needed("torch", EXTRA)
    model, tokenizer = _model()
    size_px = model.config.vision_config.image_size
    found: list[str] = []
    for start in range(0, len(images), MAX_BATCH):
        pixels = torch.from_numpy(squeezed(images[start : start + MAX_BATCH], size_px)).to(device(EXTRA))
        tokens = model.generate(pixel_values=pixels, num_beams=NUM_BEAMS, max_new_tokens=MAX_TOKENS, do_sample=False)
        found += [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    return found


@cache
def _model() -> tuple[Any, Any]:
    model = load_model("BlipForConditionalGeneration", SETTING, EXTRA)
    return model, load_tokenizer("BertTokenizer", SETTING, EXTRA)
