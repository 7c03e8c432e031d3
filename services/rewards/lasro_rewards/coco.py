"""The 80 object names of COCO, and how to find them in a prompt. Pure; imports nothing optional."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Ids run to 90: ten of the first list's names never got annotations.
NAMES: Mapping[int, str] = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip
SINGULARS: Mapping[str, str] = {name: name for name in NAMES.values()} | {
    "man": "person", "woman": "person", "boy": "person", "girl": "person", "child": "person", "bike": "bicycle",
    "motorbike": "motorcycle", "plane": "airplane", "sofa": "couch", "television": "tv", "phone": "cell phone",
    "fridge": "refrigerator", "ball": "sports ball", "table": "dining table", "doughnut": "donut",
}  # fmt: skip
IRREGULAR: Mapping[str, str] = {
    "people": "person", "men": "person", "women": "person", "children": "person", "knives": "knife", "mice": "mouse",
    "sheep": "sheep", "skis": "skis", "scissors": "scissors",
}  # fmt: skip
NUMBERS: Mapping[str, int] = {
    word: number
    for number, words in enumerate(
        ("", "a an one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
    for word in words.split()
}


def _plural(name: str) -> str:
    return name + ("es" if name.endswith(("s", "ch", "x")) else "s")


PLURALS: Mapping[str, str] = {
    _plural(word): name for word, name in SINGULARS.items() if name not in IRREGULAR and word not in ("man", "woman")
} | dict(IRREGULAR)
_FORMS = "|".join(sorted({*SINGULARS, *PLURALS}, key=len, reverse=True))  # "hot dog" is tried before "dog"
_WORD_OF_NO_OBJECT = rf"(?!(?:{_FORMS}|{'|'.join(NUMBERS)}|\d+)\b)[\w-]+"
_PHRASE = re.compile(
    rf"\b(?:(?P<number>{'|'.join(NUMBERS)}|\d{{1,2}})\s+(?:{_WORD_OF_NO_OBJECT}\s+){{0,2}})?(?P<name>{_FORMS})\b"
)


def objects_in_prompt(prompt: str) -> dict[str, int | None]:
    """COCO names in a prompt with how many are asked for; None where it does not say: "dogs", "a lot of dogs"."""
    found: dict[str, int | None] = {}
    for match in _PHRASE.finditer(prompt.lower()):
        word, number = match["name"], match["number"]
        name = SINGULARS.get(word) or PLURALS[word]
        count = 1 if number is None else NUMBERS.get(number) or int(number)
        if word in PLURALS and (number is None or count == 1) and word not in SINGULARS:
            count = None
        before = found.get(name, 0)
        found[name] = None if count is None or before is None else before + count
    return found


def wanted_objects(prompt: str, metadata: Any) -> dict[str, int | None] | str:
    """Objects of `metadata["objects"]`, a list of names or a map from name to count, else of the prompt.

    A string is the reason why there are none.
    """
    given = metadata.get("objects") if isinstance(metadata, dict) else None
    if given is None:
        return objects_in_prompt(prompt) or f"prompt: got {prompt[:80]!r}, expected a COCO object name in it"
    counts = given if isinstance(given, dict) else dict.fromkeys(map(str, given)) if isinstance(given, list) else {}
    unknown = [name for name in counts if name not in NAMES.values()]
    bad = [count for count in counts.values() if count is not None and not _is_count(count)]
    if unknown or bad or not counts:
        return f'metadata: got "objects" {given!r:.80}, expected COCO names, each with a count of at least 1 or none'
    return dict(counts)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
