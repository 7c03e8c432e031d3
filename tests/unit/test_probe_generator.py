"""Probe generators of stage 1, with a score source whose gradient is known."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from lasro.config import RunSettings
from lasro.errors import DeviceMemoryError
from lasro.images import png_bytes
from lasro.methods.registry import create_trainer
from lasro.models.registry import load_model
from lasro.training import sampling
from lasro.training.group_summary import distances
from lasro.training.prompts import Prompt
from lasro.training.sampling import (
    draw_group_noises,
    draw_noises,
    generator_for,
    sample_groups,
    sample_latents,
    sample_second_step_groups,
)
from lasro_client.run.cost import Speed, images_per_round, pretrain_cost
from lasro_client.run.probe_generator import ProbeGenerator

PROMPTS = [Prompt("a red star", None), Prompt("a blue square", None)]


class Uphill:
    """A score whose gradient is 1 everywhere."""

    max_timestep = 200

    def score_and_gradient(
        self, latents_BCHW: torch.Tensor, timesteps_B: torch.Tensor, noise_BCHW: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return latents_BCHW.sum((1, 2, 3)), torch.ones_like(latents_BCHW)


def make_probe(one_level_model_path: Path) -> ProbeGenerator:
    config = RunSettings.model_validate(
        {
            "name": "probe",
            "model": {"path": str(one_level_model_path), "device": "cpu"},
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "any"}],
            "lora": {"rank": 2},
            "pretrain": {"probe_after": 2, "probe_rounds": 3, "seeds_per_prompt": 2},
            "train": {"batch_size": 2, "warmup_steps": 1},
        }
    )
    return ProbeGenerator(create_trainer(config, load_model(config.model)), config.pretrain, config.train.batch_size)


@pytest.fixture
def probe(one_level_model_path: Path) -> ProbeGenerator:
    return make_probe(one_level_model_path)


def test_probes_leave_update_and_start_again_from_the_base(probe: ProbeGenerator) -> None:
    """Guards against a probe generator that is never thrown away: the next learns what the last was fooled by."""
    noises = draw_noises(probe.trainer.model, 2, torch.Generator().manual_seed(0))
    conditioning = probe.trainer.model.embed(["a red star"] * 2)
    base = torch.cat(sample_latents(probe.trainer.model, noises, conditioning, base=True))
    out, moved = [], []
    for round in range(8):
        out.append(probe.is_active(round))
        moved.append((torch.cat(probe.policy(noises, conditioning)) - base).abs().max().item())
        probe.update(round, PROMPTS, generator_for("test", round), Uphill())
    assert out == [False, False, False, True, True, False, True, True]
    assert moved[:3] == [0, 0, 0]
    assert all(distance > 0 for distance in moved[3:6])
    after_restart = torch.cat(probe.policy(noises, conditioning)) - base
    probe.trainer.restart(99)
    assert torch.equal(torch.cat(probe.policy(noises, conditioning)), base)
    assert after_restart.abs().max() > 0
    assert not probe.trainer.optimiser.state


def test_a_probe_stays_in_rounds_without_a_ranked_pair(probe: ProbeGenerator) -> None:
    """Bug: it went on by a surrogate that had learned nothing of it; one that is due is thrown away all the same."""
    for round, unranked, updates in ((2, False, 1), (3, True, 1), (4, False, 2), (5, True, 0), (6, False, 1)):
        probe.update(round, PROMPTS, generator_for("test", round), Uphill(), unranked)
        assert probe.trainer.version == updates


def test_a_group_ranks_the_probes_samples_with_the_bases_of_the_same_noise(probe: ProbeGenerator) -> None:
    """Guards against base samples that carry the probe's adapter, and against copies that look like own samples."""
    plain = sample_groups(probe.trainer.model, PROMPTS, probe.settings, "seed", base=True)
    probe.update(2, PROMPTS, generator_for("test"), Uphill())
    both = sample_groups(probe.trainer.model, PROMPTS, probe.settings, "seed", base=True, reference_policy=probe.policy)
    for alone, pair in zip(plain, both, strict=True):
        assert torch.equal(pair.latents_BCHW[:4], alone.latents_BCHW)
        assert not torch.equal(pair.latents_BCHW[4:], alone.latents_BCHW)
        assert pair.stages == [1, 1, 2, 2] * 2
        assert pair.is_reference == [False] * 4 + [True] * 4
        assert len(pair.images) == 8


def test_fewer_reference_samples_are_of_the_first_seeds_of_each_prompt(probe: ProbeGenerator) -> None:
    """Bug: reference samples of other noise than the own samples, so that gain and drift compare strangers."""
    fewer = probe.settings.model_copy(update={"reference_seeds": 1})
    for alone, pair in zip(
        sample_groups(probe.trainer.model, PROMPTS, probe.settings, "seed", base=True),
        sample_groups(probe.trainer.model, PROMPTS, fewer, "seed", base=True, reference_policy=probe.policy),
        strict=True,
    ):
        assert pair.stages == [1, 1, 2, 2, 1, 2]
        assert pair.is_reference == [False] * 4 + [True] * 2
        assert torch.equal(pair.latents_BCHW[:4], alone.latents_BCHW)
        # An untrained probe draws what the base draws.
        assert torch.allclose(pair.latents_BCHW[4:], alone.latents_BCHW[[0, 2]], atol=1e-5)
        assert all(
            moved == pytest.approx(0, abs=1e-5) for num_steps in (1, 2) for moved in distances(pair, num_steps).to_base
        )


def moved(probe: ProbeGenerator) -> ProbeGenerator:
    """After an update."""
    probe.update(2, PROMPTS, generator_for("test"), Uphill())
    return probe


def test_second_step_groups_share_what_the_first_step_made(probe: ProbeGenerator) -> None:
    """Bug: the second step is never moved by itself, or rewards are paid for one-step samples that are copies."""
    model, settings = moved(probe).trainer.model, probe.settings.model_copy(update={"second_step_draws": 2})
    noises = draw_group_noises(model, 2, 2, generator_for("seed", 1))
    conditioning = model.embed([PROMPTS[1].text] * 2)
    z_1, of_base = sample_latents(model, noises, conditioning, base=True)
    same_z_1, of_probe = sample_latents(model, noises, conditioning, base=(True, False))
    assert torch.equal(z_1, same_z_1)
    assert (of_base - of_probe).abs().max() > 1e-4
    for base, own, other in ((True, of_base, of_probe), (False, of_probe, of_base)):
        group = sample_second_step_groups(model, PROMPTS, settings, "seed", base=base)[1]
        torch.testing.assert_close(group.latents_BCHW, torch.cat([z_1, own, other]), atol=1e-5, rtol=1e-4)
        assert group.stages == [1] * 2 + [2] * 8
        assert group.is_reference == [False] * 6 + [True] * 4
        assert group.seeds == [0, 1] + [0, 0, 1, 1] * 2
        assert group.draws == [0, 0] + [0, 1] * 4
        assert len(group.images) * len(PROMPTS) == images_per_round(
            settings.model_copy(update={"prompts_per_round": 2}), 2, (2,)
        )
        both = distances(group, 2)
        assert (len(both.to_base), len(both.between_seeds)) == (4, 4), "two draws of a seed are not two seeds"


def test_more_second_draws_leave_the_others_as_they_are(probe: ProbeGenerator) -> None:
    """Bug: with another number of draws a group has other seeds too, or samples that go on from another one's z1."""
    model, more = probe.trainer.model, probe.settings.model_copy(update={"second_step_draws": 3, "reference_seeds": 1})
    plain = sample_groups(model, PROMPTS, probe.settings, "seed", base=True)
    drawn = sample_groups(model, PROMPTS, more, "seed", base=True, reference_policy=moved(probe).policy)
    for few, many in zip(plain, drawn, strict=True):
        assert many.seeds == [0, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
        assert many.draws == [0, 0, 0, 1, 2, 0, 1, 2, 0, 0, 1, 2]
        assert many.is_reference == [False] * 8 + [True] * 4
        first = [0, 1, 2, 5]
        torch.testing.assert_close(many.latents_BCHW[first], few.latents_BCHW, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(many.latents_BCHW[2], many.latents_BCHW[3], atol=1e-3)
        # Those of one z1 are nearer to each other than to those of another seed.
        near, far = ((many.latents_BCHW[2] - many.latents_BCHW[i]).abs().mean() for i in (3, 5))
        assert near < far


class UphillAtFirst(Uphill):
    """A gradient for the scores that are asked for first in an update, and none for the others."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def score_and_gradient(
        self, latents_BCHW: torch.Tensor, timesteps_B: torch.Tensor, noise_BCHW: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores_B, slope_BCHW = super().score_and_gradient(latents_BCHW, timesteps_B, noise_BCHW, prompts)
        self.asked.append(len(prompts))
        return scores_B, slope_BCHW * (len(self.asked) == 1)


@pytest.mark.parametrize(("kind", "steps"), [("both", [4, 2]), ("second", [4, 4])])
def test_a_probe_of_the_second_step_learns_from_that_alone(
    probe: ProbeGenerator, kind: Literal["both", "second"], steps: list[int]
) -> None:
    """Bug: the first step's gradient, several times larger, still moves the probe generator."""
    probe.batch_size = 4  # enough scores for S to have a width
    probe.settings = probe.settings.model_copy(update={"probe_steps": kind})
    probe.trainer.settings = probe.trainer.settings.model_copy(update={"two_step_every": 2})
    before, source = [parameter.detach().clone() for parameter in probe.trainer.parameters], UphillAtFirst()
    probe.update(2, PROMPTS, generator_for("test"), source)
    still = all(torch.equal(*pair) for pair in zip(before, probe.trainer.parameters, strict=True))
    assert still == (kind == "second")
    assert source.asked == steps, "what only the second step is for goes on to it"
    probe.update(3, PROMPTS, generator_for("test"), Uphill())
    assert not all(torch.equal(*pair) for pair in zip(before, probe.trainer.parameters, strict=True))


def test_probes_of_both_kinds_take_turns(probe: ProbeGenerator) -> None:
    """Bug: a probe generator whose groups are of another kind than its updates, or that changes kind in its life."""
    probe.settings = probe.settings.model_copy(update={"probe_steps": "alternate"})
    updated, compared = [], []
    for round in range(9):
        [group, _] = probe.sample_groups(round, PROMPTS, "seed", round)
        compared.append({num_steps for num_steps, other in zip(group.stages, group.is_reference, strict=True) if other})
        probe.update(round, PROMPTS, generator_for("test", round), Uphill())
        updated.append(probe.trainer.base_takes_first)
    assert updated == [False] * 5 + [True] * 3 + [False]
    assert compared == [set(), set(), set(), {1, 2}, {1, 2}, set(), {2}, {2}, set()]
    settings = probe.settings.model_copy(update={"rounds": 9, "second_step_draws": 3, "reference_seeds": 1})
    groups = settings.prompts_per_round * (9 * 2 * 4 + 2 * 4 + 2 * 3)  # one-step and three two-step images a seed
    assert pretrain_cost(settings, Speed(32, 2, 1)).calls == groups


def test_a_resumed_probe_of_the_second_step_goes_on_as_one(probe: ProbeGenerator, one_level_model_path: Path) -> None:
    """Bug: which step is moved is known to the process that began it alone, so a resumed run ends otherwise."""
    resumed = make_probe(one_level_model_path)
    for each in (probe, resumed):
        each.settings = each.settings.model_copy(update={"probe_steps": "second"})
    kept = probe.trainer
    for round in (2, 3):
        probe.update(round, PROMPTS, generator_for("test", round), Uphill())
        if round == 2:
            resumed.trainer.load_state(kept.state(), kept.version, kept.method.state())
            resumed.trainer.seed = kept.seed
    resumed.update(3, PROMPTS, generator_for("test", 3), Uphill())
    for one, other in zip(kept.parameters, resumed.trainer.parameters, strict=True):
        assert torch.equal(one, other)


def test_a_gpu_too_small_for_the_groups_is_told_with_what_to_lower(
    probe: ProbeGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a traceback of torch's, which names no setting."""

    def too_large(*_: object) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(sampling, "sample_latents", too_large)
    with pytest.raises(DeviceMemoryError, match=r"^drawing 2 prompts x 2 seeds: CUDA out of memory; lower prompts_per"):
        sample_groups(probe.trainer.model, PROMPTS, probe.settings, "seed")


def test_groups_decoded_side_by_side_keep_their_order(probe: ProbeGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a group with the pictures of another, which were done first."""
    model = probe.trainer.model
    monkeypatch.setattr(sampling, "cores", lambda: 3 * torch.get_num_threads())
    for group in sample_groups(model, [*PROMPTS, *PROMPTS], probe.settings, "seed"):
        assert group.images == [png_bytes(image) for image in model.decode(group.latents_BCHW, mixed=True)]


def test_no_probe_rounds_is_no_probe(probe: ProbeGenerator) -> None:
    """Guards against paying for samples of a probe generator that was switched off."""
    probe.settings = probe.settings.model_copy(update={"probe_rounds": 0})
    assert not any(probe.is_active(round) for round in range(9))
    probe.update(5, PROMPTS, generator_for("test"), Uphill())
    assert probe.trainer.version == 0
