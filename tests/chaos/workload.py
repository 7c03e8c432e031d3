"""What the runs are made of: groups, images and true rewards, the same in every process and after every restart.

Shape legend: N samples of a group, CHW one latent.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lasro import wire

REWARD, MORTAL = "truth", "mortal"
"""The second is the same number as long as its endpoint lives; the run does not train on it."""
MORTAL_EVERY = 4
"""One group in so many has both."""
RUNS = ("left", "right")
"""Both have groups of the same ids and of other content."""
ENOUGH = "enough"
"""The file that is there once as many faults struck as were asked for; no run begins its last round before."""
PROMPTS = ("a red star", "a blue square", "a green ring", "a pink heart", "two stars", "rings")
LATENT_SHAPE = (4, 8, 8)
IMAGE_SIDE, IMAGE_BYTES = 4, 4 * 4 * 3
LARGE_EVERY, LARGE_SEEDS = 150, 34
"""One group in so many has so many seeds: too large for an entry of the stream."""
REJECTED_BELOW = 8
"""Of 256: images that have no reward, however often they are scored."""


def truth(pixels: bytes) -> float | None:
    """The reward of an image; null for one that cannot be scored."""
    digest = hashlib.blake2b(pixels, digest_size=9).digest()
    return None if digest[8] < REJECTED_BELOW else int.from_bytes(digest[:6], "big") / 2**48


@dataclass(frozen=True, eq=False)
class Group:
    """One group before it is encoded."""

    group_id: str
    round: int
    index: int
    prompt: str
    stages: list[wire.NumSteps]
    pixels: list[bytes]
    latents_NCHW: np.ndarray

    @property
    def rewards(self) -> list[float | None]:
        return [truth(pixels) for pixels in self.pixels]

    @property
    def latents(self) -> bytes:
        return wire.pack_tensors({"latents": self.latents_NCHW})


class Workload(wire.Message):
    """Of each run `rounds` times `per_round` groups."""

    seed: int
    rounds: int
    per_round: int

    @classmethod
    def read(cls, folder: Path) -> Workload:
        return cls.model_validate_json((folder / "workload.json").read_bytes())

    def write(self, folder: Path) -> None:
        (folder / "workload.json").write_text(self.model_dump_json())

    @property
    def groups(self) -> int:
        """Of all runs."""
        return len(RUNS) * self.rounds * self.per_round

    def ids(self) -> Iterator[tuple[str, int, int]]:
        """Id, round and index of a run's groups."""
        for round in range(self.rounds):
            for index in range(self.per_round):
                yield f"r{round:06d}-{index:04d}", round, index

    def group(self, run: str, round: int, index: int) -> Group:
        """The same whenever it is asked for."""
        name = hashlib.blake2b(f"{self.seed}/{run}/{round}/{index}".encode(), digest_size=16).digest()
        rng = np.random.default_rng(int.from_bytes(name, "big"))
        large = (round * self.per_round + index) % LARGE_EVERY == LARGE_EVERY - 1
        stages: list[wire.NumSteps] = [1, 2] * (LARGE_SEEDS if large else 1)
        return Group(
            group_id=f"r{round:06d}-{index:04d}",
            round=round,
            index=index,
            prompt=PROMPTS[int(rng.integers(len(PROMPTS)))],
            stages=stages,
            pixels=[rng.bytes(IMAGE_BYTES) for _ in stages],
            latents_NCHW=rng.standard_normal((len(stages), *LATENT_SHAPE), dtype=np.float32),
        )


def rewards_of(group: Group) -> list[str]:
    return [REWARD, MORTAL] if group.index % MORTAL_EVERY == 0 else [REWARD]


def submission(group: Group) -> wire.GroupSubmission:
    """The group as a client posts it."""
    return wire.GroupSubmission(
        group_id=group.group_id,
        round=group.round,
        index=group.index,
        prompt=group.prompt,
        policy_version=group.round,
        rewards=rewards_of(group),
        stages=group.stages,
        images=[_png(pixels) for pixels in group.pixels],
        latents=group.latents,
    )


def _png(pixels: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (IMAGE_SIDE, IMAGE_SIDE), pixels).save(buffer, "PNG")
    return buffer.getvalue()
