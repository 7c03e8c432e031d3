"""A run that needs no reward called: what it is made of, and groups whose scores are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lasro import wire
from lasro.config import ModelSettings, SurrogateRun, SurrogateSettings

REWARD = "known"
SPEC = wire.RewardSpec(name=REWARD, url="https://nowhere.invalid/", protocol=wire.Protocol.NATIVE)


def run_of(model: Path) -> SurrogateRun:
    surrogate = SurrogateSettings(head_channels=8, held_out_share=0, device="cpu")
    return SurrogateRun(model=ModelSettings(path=str(model)), surrogate=surrogate, weights={REWARD: 1.0})


def known_group(index: int) -> wire.GroupSubmission:
    latents = np.random.default_rng(index).normal(size=(2, 4, 8, 8)).astype(np.float16)
    return wire.GroupSubmission(
        group_id=f"g{index}", round=0, index=index, prompt="a red star", policy_version=0, rewards=[REWARD],
        stages=[1, 2], scores={REWARD: [0.25, 0.75]}, latents=wire.pack_tensors({"latents": latents}),
    )  # fmt: skip
