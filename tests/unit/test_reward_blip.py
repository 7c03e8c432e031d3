"""The BLIP rewards on small random models of the same architecture, against their formulas worked out here."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipForQuestionAnswering

from lasro.errors import ConfigError, ModelError
from lasro.reward_sdk import RejectedItem
from lasro_rewards import blip_vqa as vqa
from lasro_rewards import caption_alignment as captioning
from lasro_rewards.blip_vqa import blip_vqa, noun_phrases, question
from lasro_rewards.pixels import squeezed
from lasro_rewards.settings import settings

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", "a", "red", "blue", "circle", "square", "yes", "no"]
BOS = len(WORDS)  # [DEC]; [ENC] follows, and neither is in the tokenizer, as in the published checkpoints
PHRASES = ["A red circle", "a blue square."]


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 24, 3)).astype(np.uint8))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Models are kept for the process: each test brings its own, on one thread, since two that wait for each other on a
    busy machine made these tests take over a minute."""
    threads = torch.get_num_threads()
    for cached in (settings, vqa._model, vqa._parser, captioning._model):
        cached.cache_clear()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LASRO_REWARD_THREADS", "1")
        yield
    for cached in (settings, vqa._model, vqa._parser, captioning._model):
        cached.cache_clear()
    torch.set_num_threads(threads)


def config() -> BlipConfig:
    text = {
        "vocab_size": BOS + 2, "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": BOS, "pad_token_id": 0, "sep_token_id": 3,
        "eos_token_id": 3, "is_decoder": True, "initializer_range": 0.5,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 32, "initializer_range": 0.5,
    }  # fmt: skip
    return BlipConfig(text_config=text, vision_config=vision)


def tokenizer(folder: Path) -> BertTokenizer:
    (folder / "words").mkdir(parents=True)
    (folder / "words" / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return BertTokenizer.from_pretrained(folder / "words")


def saved(model_class: Any, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model_class(config()).save_pretrained(folder / "blip")
    tokenizer(folder).save_pretrained(folder / "blip")
    return folder / "blip"


def test_score_is_the_product_of_yes_against_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards [ENC], padding between questions, the answer's start and the normalisation by yes and no only."""
    folder = saved(BlipForQuestionAnswering, tmp_path)
    monkeypatch.setenv("LASRO_BLIP_VQA_MODEL", str(folder))
    model, words = BlipForQuestionAnswering.from_pretrained(folder).eval(), BertTokenizer.from_pretrained(folder)
    images = [noise(0), noise(1)]
    expected = []
    for image in images:
        probabilities = []
        for text in ("a red circle?", "a blue square?"):
            tokens = words(text, return_tensors="pt")
            tokens["input_ids"][0, 0] = BOS + 1
            with torch.inference_mode():
                pixels = torch.from_numpy(squeezed([image], 480))
                states = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
                asked = model.text_encoder(
                    tokens["input_ids"], attention_mask=tokens["attention_mask"], encoder_hidden_states=states,
                    encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long),
                )[0]  # fmt: skip
                logits = model.text_decoder(torch.tensor([[BOS]]), encoder_hidden_states=asked).logits[0, 0]
            p = logits.softmax(0)
            probabilities.append((p[11] / (p[11] + p[12])).item())
        expected.append(math.prod(probabilities))
    assert expected[0] != pytest.approx(expected[1], rel=1e-3), "the random model must tell the images apart"
    answer = blip_vqa(images, ["any", "any"], [{"noun_phrases": PHRASES}] * 2)
    assert answer == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("phrase", "asked"),
    [
        ("A red circle", "a red circle?"),
        ('the "Big" one.', "the big one?"),
        ("word " * 60 + "end", " ".join(["word"] * 50)),
    ],
)
def test_questions_are_cleaned_as_upstream_does(phrase: str, asked: str) -> None:
    """Guards the wording: punctuation and case change P(yes)."""
    assert question(phrase) == asked


def test_at_most_eight_phrases_and_none_is_rejected() -> None:
    """Guards against a product over nothing, which would be a perfect 1."""
    assert len(noun_phrases("any", {"noun_phrases": ["a cat"] * 9})) == 8
    (answer,) = blip_vqa([noise(0)], ["any"], [{"noun_phrases": []}])
    assert isinstance(answer, RejectedItem)


def test_a_missing_parser_is_one_line_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a score without noun phrases where spaCy or its model is not installed."""
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ConfigError, match=r"lasro\[blip\]"):
        noun_phrases("a cat", None)

    def load(name: str) -> None:
        raise OSError(f"Can't find model {name!r}")

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    with pytest.raises(ConfigError, match="python -m spacy download en_core_web_sm"):
        noun_phrases("a cat", None)


def test_phrases_of_place_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards upstream's exceptions: "the left" is no object to ask for."""
    chunks = [SimpleNamespace(text=text) for text in ("a cat", "the left", "a dog", "top")]
    monkeypatch.setattr(vqa, "_parser", lambda: lambda prompt: SimpleNamespace(noun_chunks=chunks))
    assert noun_phrases("any", None) == ["a cat", "a dog"]


def test_captions_are_those_of_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards batching and decoding: captions must not depend on what stands beside an image."""
    folder = saved(BlipForConditionalGeneration, tmp_path)
    monkeypatch.setenv("LASRO_CAPTION_MODEL", str(folder))
    images = [noise(seed) for seed in range(3)]
    together = captioning.captions(images)
    assert together == [captioning.captions([image])[0] for image in images]
    assert any(together)
    assert "[" not in "".join(together), "special tokens must not reach CLIP"


def test_caption_alignment_is_the_cosine_of_two_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards pairing: each caption meets its own prompt."""
    vectors = {"a cat": [1.0, 0.0], "a dog": [0.0, 1.0], "cat": [0.8, 0.6]}
    features = SimpleNamespace(of_texts=lambda texts: np.array([vectors[text] for text in texts]))
    monkeypatch.setattr(captioning, "clip_features", lambda setting, extra: features)
    monkeypatch.setattr(captioning, "captions", lambda images: ["cat", "cat"])
    assert captioning.caption_alignment([noise(0)] * 2, ["a cat", "a dog"]) == pytest.approx([0.8, 0.6])


def test_missing_weights_are_a_model_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards the message of the pinned default."""
    monkeypatch.setenv("LASRO_BLIP_VQA_MODEL", "no-such/blip@abc")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="hf download no-such/blip --revision abc"):
        blip_vqa([noise(0)], ["any"], [{"noun_phrases": PHRASES}])
