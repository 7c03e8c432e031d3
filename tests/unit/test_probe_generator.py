"""Probe generators of stage 1, with a score source whose gradient is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lasro.config import RunSettings
from lasro.errors import DeviceMemoryError
from lasro.images import png_bytes
from lasro.methods.registry import create_trainer
from lasro.models.registry import load_model
from lasro.training import sampling
from lasro.training.prompts import Prompt
from lasro.training.sampling import distances, draw_noises, generator_for, sample_groups, sample_latents
from lasro_client.run.probe_generator import ProbeGenerator

PROMPTS = [Prompt("a red star", None), Prompt("a blue square", None)]


class Uphill:
    """A score whose gradient is 1 everywhere."""

    max_timestep = 200

    def score_and_gradient(
        self, latents_BCHW: torch.Tensor, timesteps_B: torch.Tensor, noise_BCHW: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return latents_BCHW.sum((1, 2, 3)), torch.ones_like(latents_BCHW)


@pytest.fixture
def probe(tiny_model_path: Path) -> ProbeGenerator:
    config = RunSettings.model_validate(
        {
            "name": "probe",
            "model": {"path": str(tiny_model_path), "device": "cpu"},
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "any"}],
            "lora": {"rank": 2},
            "pretrain": {"probe_after": 2, "probe_rounds": 3, "seeds_per_prompt": 2},
            "train": {"batch_size": 2, "warmup_steps": 1},
        }
    )
    return ProbeGenerator(create_trainer(config, load_model(config.model)), config.pretrain, config.train.batch_size)


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
