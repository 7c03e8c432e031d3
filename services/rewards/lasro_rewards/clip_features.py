"""Unit CLIP features of images and prompts, for every reward that is a CLIP model. Extra: `clip`.

Shape legend: B batch, D features, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lasro_rewards.packages import needed
from lasro_rewards.pixels import cropped
from lasro_rewards.weights import device, load_model, load_tokenizer

EXTRA = "clip"
MAX_BATCH = 16  # bounds memory: ViT-H needs about 0.1 GB an image at float32
Prepare = Callable[[Sequence[Image.Image], int], NDArray[np.float32]]


class ClipFeatures:
    """A CLIP model of transformers and its tokenizer."""

    def __init__(self, setting: str, extra: str = EXTRA) -> None:
        self._model = load_model("CLIPModel", setting, extra)
        self._tokenizer = load_tokenizer("CLIPTokenizer", setting, extra)
        self._device = device(extra)
        self._torch = needed("torch", extra)

    @property
    def scale(self) -> float:
        """The trained factor on cosines, `exp(logit_scale)`."""
        return float(self._model.logit_scale.exp())

    def of_images(self, images: Sequence[Image.Image], prepare: Prepare = cropped) -> NDArray[np.float32]:
        """Unit vectors [B, D]."""
        size_px = self._model.config.vision_config.image_size
        return self._batched(images, lambda part: self._encode_images(prepare(part, size_px)))

    def of_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [B, D]; texts over the model's limit of tokens are cut, as all CLIP scores do."""
        distinct = list(dict.fromkeys(texts))
        rows = {text: row for row, text in enumerate(distinct)}
        return self._batched(distinct, self._encode_texts)[[rows[text] for text in texts]]

    def cosines(self, images: Sequence[Image.Image], texts: Sequence[str], prepare: Prepare = cropped) -> list[float]:
        """Cosine of each image with its own text, in [-1, 1]."""
        if not images:
            return []
        return np.einsum("bd,bd->b", self.of_images(images, prepare), self.of_texts(texts)).tolist()

    def _batched(self, items: Sequence[Any], encode: Callable[[Sequence[Any]], Any]) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(items), MAX_BATCH):
            with self._torch.inference_mode():
                features_BD = encode(items[start : start + MAX_BATCH]).pooler_output
            parts.append(self._torch.nn.functional.normalize(features_BD, dim=-1).float().cpu().numpy())
        return np.concatenate(parts)

    def _encode_images(self, pixels_BCHW: NDArray[np.float32]) -> Any:
        return self._model.get_image_features(pixel_values=self._torch.from_numpy(pixels_BCHW).to(self._device))

    def _encode_texts(self, texts: Sequence[str]) -> Any:
        limit = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return self._model.get_text_features(**tokens.to(self._device))


@cache
def clip_features(setting: str, extra: str = EXTRA) -> ClipFeatures:
    """The model of a setting, loaded once; raises ModelError, ConfigError."""
    return ClipFeatures(setting, extra)
