"""What is scored: eight images of 128 x 128 pixels, about 8 kB each as PNG, as a model's pictures are."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Iterator

from PIL import Image

from benchmarks.rewards.load import request_bytes
from lasro import wire

IMAGES = 8
SIDE_PX = 128
NOISE_PX = 49
"""Side of the square of noise that makes up most of a file."""


def encoded(kind: str = "PNG") -> list[bytes]:
    """The same at each call; WebP is lossless."""
    files = []
    for seed in range(IMAGES):
        noise = random.Random(seed).randbytes(3 * NOISE_PX**2)
        image = Image.linear_gradient("L").resize((SIDE_PX, SIDE_PX)).convert("RGB")
        image.paste(Image.frombytes("RGB", (NOISE_PX, NOISE_PX), noise), (SIDE_PX // 4, SIDE_PX // 4))
        buffer = io.BytesIO()
        image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
        files.append(buffer.getvalue())
    return files


def body(reward: str, images: list[bytes], prompt: str) -> bytes:
    """Of a score request; new to the cache where its prompt is."""
    request = wire.ScoreRequest(prompts=[prompt] * len(images), images=images, rewards=[reward])
    return wire.to_msgpack(request)


def unknown(url: str, reward: str, images: list[bytes], first: int = 0) -> Iterator[bytes]:
    """Score requests without end, of which neither prompt nor image was there before; `first` sets several such series
    apart. A number behind an image's end makes it another file of the same pixels.
    """
    for number in itertools.count(first):
        new = [image + number.to_bytes(8, "big") for image in images]
        yield request_bytes(f"{url}/v1/score", body(reward, new, f"unknown {number}"), wire.MSGPACK_TYPE)


def known(url: str, reward: str, images: list[bytes], count: int) -> list[bytes]:
    """So many score requests, to be sent over and over."""
    bodies = [body(reward, images, f"known {number}") for number in range(count)]
    return [request_bytes(f"{url}/v1/score", one, wire.MSGPACK_TYPE) for one in bodies]
