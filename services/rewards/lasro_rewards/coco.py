"""The 80 object names of COCO, and how to find them in a prompt. Pure; imports nothing optional."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Ids run to 90: ten of the first list's names never got annotations.
NAMES: Mapping[int, str] = dict(
    zip(
        [*range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83), *range(84, 91)],
        (
            "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
            "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
            "backpack,umbrella,"
            "handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,"
            "surfboard,tennis racket,bottle,"
            "wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,"
            "chair,couch,potted plant,bed,"
            "dining table,toilet,"
            "tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,"
            "book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
        ).split(","),
        strict=True,
    )
)
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
    counts = given if isinstance(given, dict) else {name: None for name in given} if isinstance(given, list) else {}
    unknown = [name for name in counts if name not in NAMES.values()]
    bad = [count for count in counts.values() if count is not None and not _is_count(count)]
    if unknown or bad or not counts:
        return f'metadata: got "objects" {given!r:.80}, expected COCO names, each with a count of at least 1 or none'
    return dict(counts)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
