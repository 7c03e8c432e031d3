"""Groups whose rewards are known: on the sample stream without a call, and drawn again just as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lasro import wire
from lasro.config import ModelSettings, SamplingSettings
from lasro.errors import ConfigError, WireError
from lasro.models.registry import load_model
from lasro.redis_store.connection import connect
from lasro.redis_store.sample_stream import SampleStream
from lasro.training.group_summary import summarise_group
from lasro.training.prompts import Prompt
from lasro.training.sampling import sample_groups
from lasro.wire import GroupState, GroupStatus, GroupSubmission, RewardValue, ScoredItem, Status
from lasro_client.run.base_sample_rewards import BASE_REWARDS_FILE, base_rewards_of, draw_again, read_base_rewards
from lasro_client.services.reward_client import RewardClient

RUN = "known-scores"


def known(**changes: Any) -> GroupSubmission:
    values = {
        "group_id": "known",
        "round": -1,
        "index": 0,
        "prompt": "p",
        "policy_version": 0,
        "rewards": ["offline"],
        "stages": [1, 2],
        "scores": {"offline": [0.25, None]},
        "latents": wire.pack_tensors({"latents": np.ones((2, 4, 2, 2), np.float16)}),
        "max_reward_calls": 0,
    }
    return GroupSubmission.model_validate(values | changes)


def test_known_scores_reach_the_trainer_without_a_call(api: RewardClient, redis_url: str) -> None:
    """Guards against calling (and charging) a reward for what is known, and against a failed one turned into 0."""
    spec = wire.RewardSpec(name="offline", url="https://nowhere.invalid/", protocol=wire.Protocol.NATIVE)
    api.register(spec)
    status = api.wait_scored(RUN, [known()], 20.0)["known"]
    assert status.state is GroupState.SCORED
    assert status.reward_calls == 0
    [(entry_id, sample)] = (stream := SampleStream(connect(redis_url), RUN)).read(10, 1000)
    assert sample.rewards == {"offline": [0.25, None]}
    assert sample.round == -1
    stream.ack([entry_id])
    stream.delete()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": {"other": [0.1, 0.2]}}, "expected those of"),
        ({"scores": {"offline": [0.1]}}, "expected one per stage entry"),
        ({"images": [b"x", b"y"]}, "expected none beside scores"),
        ({"scores": None}, "expected one per stage entry"),
        ({"scores": {"offline": [0.1, float("nan")]}}, "finite"),
    ],
)
def test_known_scores_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    """Guards against scores that are broadcast over samples, or that belong to another reward."""
    with pytest.raises(ValueError, match=message):
        known(**changes)
    assert issubclass(WireError, ValueError)


@pytest.mark.parametrize("draws", [1, 2])
def test_labels_bring_back_the_very_latents(draws: int, tmp_path: Path, one_level_model_path: Path) -> None:
    """Guards against rewards that end up with other samples than those they were given for."""
    model = load_model(ModelSettings(path=str(one_level_model_path), device="cpu"))
    prompts = [Prompt("a red star"), Prompt("a blue ring")]
    settings = SamplingSettings(seeds_per_prompt=3, second_step_draws=draws)
    groups = sample_groups(model, prompts, settings, 7, "pretrain", 5, base=True)
    scored = [
        GroupStatus(
            group_id="g",
            state=GroupState.SCORED,
            reward_calls=0,
            items=[
                ScoredItem(scores={"r": RewardValue(score=float(latent.mean()), status=Status.OK)}, total=None)
                for latent in group.latents_BCHW
            ],
        )
        for group in groups
    ]
    path = tmp_path / BASE_REWARDS_FILE
    path.write_text(
        base_rewards_of(7, 5, [summarise_group(group) for group in groups], scored).model_dump_json() + "\n"
    )
    found = read_base_rewards(path, 10, {"r"})
    for seeds_of_group, group, latents_NCHW in zip(found, groups, draw_again(model, found), strict=True):
        torch.testing.assert_close(latents_NCHW.float(), group.latents_BCHW, atol=2e-3, rtol=2e-3)
        rewards_N = torch.tensor(seeds_of_group.group.rewards["r"])
        torch.testing.assert_close(rewards_N, group.latents_BCHW.mean((1, 2, 3)), atol=1e-4, rtol=1e-4)
    assert read_base_rewards(path, 1, {"r"})[0].group.prompt == "a blue ring"
    fewer = read_base_rewards(path, 10, {"r"}, seeds=2)
    for seeds_of_group, group, latents_NCHW in zip(fewer, groups, draw_again(model, fewer), strict=True):
        first_two = group.latents_BCHW[[0, 1, 3, 4] if draws == 1 else [0, 1, 3, 4, 5, 6]]
        torch.testing.assert_close(latents_NCHW.float(), first_two, atol=2e-3, rtol=2e-3)
        rewards_N = torch.tensor(seeds_of_group.group.rewards["r"])
        torch.testing.assert_close(rewards_N, first_two.mean((1, 2, 3)), atol=1e-4, rtol=1e-4)


def test_base_rewards_of_another_reward_are_refused(tmp_path: Path) -> None:
    """Guards against ranking by rewards that this run does not ascend."""
    path = tmp_path / BASE_REWARDS_FILE
    path.write_text('{"seed": 0, "round": 0, "groups": [{"prompt": "p", "rewards": {"r": [0.1, 0.2]}}]}\n')
    with pytest.raises(ConfigError, match="expected also"):
        read_base_rewards(path, 10, {"other"})
    with pytest.raises(ConfigError, match="lasro pretrain"):
        read_base_rewards(tmp_path / "absent.jsonl", 10, {"other"})
