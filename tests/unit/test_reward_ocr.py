"""Text rendering: which text is wanted, and real text read by the real recogniser."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw, ImageFont

from lasro.reward_sdk import RejectedItem
from lasro_rewards.ocr import squeezed, text_rendering, wanted_text


def drawn(text: str, size_px: int = 256) -> Image.Image:
    image = Image.new("RGB", (size_px, size_px), "white")
    font = ImageFont.load_default(size_px // 6)
    ImageDraw.Draw(image).text((size_px // 16, size_px // 3), text, fill="black", font=font)
    return image


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ('a sign that says "STOP"', "STOP"),
        ("a sign that says 'Open 24h'", "Open 24h"),
        ("a “HELLO” and a ‘WORLD’", "HELLO WORLD"),
        ("the dog's bowl and the cat's bed", None),
        ("a plain sign", None),
        ('a sign that says " "', None),
    ],
)
def test_wanted_text_is_what_the_prompt_quotes(prompt: str, wanted: str | None) -> None:
    """Guards against apostrophes taken for quotes, and against a prompt without text that is scored anyway."""
    assert wanted_text(prompt, None) == wanted


def test_metadata_wins_over_the_prompt() -> None:
    """Guards the order: the prompt file's metadata says what is meant, even where the prompt quotes something."""
    assert wanted_text('a sign "STOP"', {"text": "GO"}) == "GO"
    assert wanted_text("a sign", {"text": "  "}) is None


def test_case_and_spaces_do_not_count() -> None:
    """Guards against scores that hang on the spaces which the recogniser drops."""
    assert squeezed("Open 24h") == squeezed("OPEN24H")


def test_a_prompt_without_text_is_rejected() -> None:
    """Guards against a made-up number where nothing was asked for."""
    (answer,) = text_rendering([drawn("HELLO")], ["a sign"])
    assert isinstance(answer, RejectedItem)
    assert "a sign" in answer.reason


class TestRecogniser:
    @pytest.fixture(autouse=True)
    def packages(self) -> None:
        for name in ("rapidocr", "onnxruntime", "rapidfuzz"):
            pytest.importorskip(name)

    @pytest.mark.parametrize("size_px", [128, 256])
    def test_drawn_text_scores_one(self, size_px: int) -> None:
        """Guards reading, channel order and enlarging: 128-pixel images are not read at their own size."""
        assert text_rendering([drawn("HELLO", size_px)], ['the word "hello"']) == [1.0]

    def test_score_is_the_edit_similarity(self) -> None:
        """Guards the formula: one letter of five wrong is 0.8, and text beside the wanted one costs."""
        near, more, blank = text_rendering(
            [drawn("HELLO"), drawn("HELLO\nYOU"), Image.new("RGB", (128, 128), "white")],
            ['"JELLO"', '"HELLO"', '"HELLO"'],
        )
        assert near == pytest.approx(1 - 1 / 5)
        assert more == pytest.approx(1 - 3 / 8)
        assert blank == 0.0
