"""Attribute binding by questions: is each noun phrase of the prompt true of the image? Extra: `blip`.

The BLIP-VQA score of T2I-CompBench (Huang et al. 2023, arXiv 2307.06350), as BLIPvqa_eval/ of
github.com/Karine-Huang/T2I-CompBench computes it (BLIP_vqa.py at bfe63005; models/blip_vqa.py and data/ at 7710d059):

- noun phrases by spaCy's en_core_web_sm, without "top", "the side", "the left", "the right", the first 8;
- each asked as "<phrase>?", cleaned, at most 35 tokens, its first token replaced by BLIP's [ENC];
- P = P(yes) / (P(yes) + P(no)) of the answer's first token; the score is the product over the phrases.

Two differences: upstream rounds each P to 4 digits, and its checkpoint has position embeddings for 480 pixels, which
the hub's copy holds resampled to 384; they are resampled back here, since images are asked about at 480 pixels.

Code: transformers (Apache-2.0), spaCy (MIT). Weights: Salesforce/blip-vqa-base (BSD-3-Clause), en_core_web_sm (MIT).

Shape legend: Q questions, L tokens, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from PIL import Image

from lasro.errors import ConfigError
from lasro.reward_sdk import RejectedItem, reward
from lasro_rewards.packages import needed
from lasro_rewards.pixels import squeezed
from lasro_rewards.weights import device, load_model, load_tokenizer

EXTRA = "blip"
SETTING = "blip_vqa_model"
SIZE_PX = 480
MAX_PHRASES, MAX_WORDS, MAX_TOKENS = 8, 50, 35
NO_OBJECTS = ("top", "the side", "the left", "the right")
PARSER = "en_core_web_sm"


@reward
def blip_vqa(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float | RejectedItem]:
    """Product of P(yes) over the noun phrases, in [0, 1]: those of `metadata["noun_phrases"]`, else the prompt's."""
    return [_score(image, *row) for image, *row in zip(images, prompts, metadata, strict=True)]


def noun_phrases(prompt: str, metadata: Any) -> list[str]:
    """`metadata["noun_phrases"]` if it is there, else the noun chunks that spaCy finds; raises ConfigError."""
    given = metadata.get("noun_phrases") if isinstance(metadata, dict) else None
    if isinstance(given, list):
        return [phrase for phrase in given if isinstance(phrase, str)][:MAX_PHRASES]
    chunks = [chunk.text for chunk in _parser()(prompt).noun_chunks]
    return [chunk for chunk in chunks if chunk not in NO_OBJECTS][:MAX_PHRASES]


def question(phrase: str) -> str:
    """A noun phrase as the question that BLIP is asked."""
    words = re.sub(r"[.!\"()*#:;~]", "", f"{phrase}?".lower()).rstrip(" ").split(" ")
    return " ".join(words[:MAX_WORDS])


def yes_probabilities(image: Image.Image, questions: Sequence[str]) -> list[float]:
    """P(yes) against P(no) for each question about one image, in [0, 1]."""
    torch = needed("torch", EXTRA)
    model, tokenizer, place = _model()
    tokens = tokenizer(list(questions), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    ids_QL, mask_QL = tokens["input_ids"].to(place), tokens["attention_mask"].to(place)
    start_id = model.config.text_config.bos_token_id
    ids_QL[:, 0] = start_id + 1  # [ENC] follows [DEC], the start of an answer, in BLIP's vocabulary
    with torch.inference_mode():
        pixels = torch.from_numpy(squeezed([image], SIZE_PX)).to(place)
        patches = model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
        asked = model.text_encoder(
            input_ids=ids_QL,
            attention_mask=mask_QL,
            encoder_hidden_states=patches.expand(len(ids_QL), -1, -1),
        ).last_hidden_state
        logits_QV = model.text_decoder(
            input_ids=torch.full((len(ids_QL), 1), start_id, device=place),
            encoder_hidden_states=asked,
            encoder_attention_mask=mask_QL,
        ).logits[:, 0]
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    return logits_QV[:, [yes, no]].double().softmax(1)[:, 0].tolist()


def _score(image: Image.Image, prompt: str, metadata: Any) -> float | RejectedItem:
    phrases = noun_phrases(prompt, metadata)
    if not phrases:
        return RejectedItem(f"prompt: got {prompt[:80]!r}, expected at least one noun phrase")
    return math.prod(yes_probabilities(image, [question(phrase) for phrase in phrases]))


@cache
def _model() -> tuple[Any, Any, Any]:
    model = load_model("BlipForQuestionAnswering", SETTING, EXTRA)
    return model, load_tokenizer("BertTokenizer", SETTING, EXTRA), device(EXTRA)


@cache
def _parser() -> Any:
    spacy = needed("spacy", EXTRA)
    try:
        return spacy.load(PARSER)
    except OSError as error:
        raise ConfigError(
            f"got no spaCy model {PARSER!r}: run python -m spacy download {PARSER}, "
            'or give metadata {"noun_phrases": [...]}'
        ) from error
