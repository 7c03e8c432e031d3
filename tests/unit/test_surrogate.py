"""The surrogate: its trunk against the UNet's own forward pass, its gradient, its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpointed_trunk import check_trunk_checkpoints
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from lasro.config import LoraSettings, ModelSettings, SurrogateSettings
from lasro.errors import WireError
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.models.surrogate import SurrogateReward, build_surrogate, cnn_head, draw_augmentation, score_and_gradient
from lasro.models.unet_encoder import UNetEncoder
from lasro.models.unet_generator import UNetGenerator

PROMPTS = ["a red star", "a blue square"]
TRUNKS = ["full", "adapter"]


@pytest.fixture(scope="module")
def model(tiny_model_path: Path) -> UNetGenerator:
    model = load_model(ModelSettings(path=str(tiny_model_path), device="cpu"))
    assert isinstance(model, UNetGenerator)
    return model


def surrogate(model: GeneratorModel, trunk: str, seed: int = 0) -> SurrogateReward:
    settings = {"trunk": trunk, "adapter_rank": 2, "head_channels": 8, "seed": seed}
    return build_surrogate(model, SurrogateSettings.model_validate(settings))


def inputs(model: GeneratorModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *model.latent_shape, generator=generator)
    return latents, *draw_augmentation((2, *model.latent_shape), 200, generator)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_untrained_trunk_is_the_unets_own_encoder(model: UNetGenerator, trunk: str) -> None:
    """Guards against a forgotten embedding: the features must be what the UNet's mid block computes in full."""
    seen: list[torch.Tensor] = []
    hook = model.base.mid_block.register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    x_t, timesteps, _ = inputs(model)
    conditioning = model.embed(PROMPTS)
    with torch.no_grad():
        model.base(x_t, timesteps, **model.unet_arguments(conditioning))
        hook.remove()
        features = surrogate(model, trunk).trunk(x_t, timesteps, conditioning)
    torch.testing.assert_close(features, seen[0])


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_trunk_checkpoints_too(model: UNetGenerator, tiny_model_path: Path, trunk: str) -> None:
    """Bug: with model.gradient_checkpointing the trunk kept all of its activations, as without."""
    settings = ModelSettings(path=str(tiny_model_path), device="cpu", gradient_checkpointing=True)
    check_trunk_checkpoints(model, load_model(settings), PROMPTS, trunk)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_what_is_trained_travels_and_nothing_else(model: UNetGenerator, trunk: str) -> None:
    """Guards against weights that travel incomplete: a receiver with them must score as the sender does."""
    latents, timesteps, noise = inputs(model)
    sender, receiver = surrogate(model, trunk, seed=1), surrogate(model, trunk, seed=2)
    with torch.no_grad():
        for parameter in sender.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02)
        expected = sender(latents, timesteps, noise, model.embed(PROMPTS))
        assert not torch.allclose(receiver(latents, timesteps, noise, model.embed(PROMPTS)), expected)
        receiver.load_trained(sender.trained_state())
        torch.testing.assert_close(receiver(latents, timesteps, noise, model.embed(PROMPTS)), expected)
    frozen = {p.data_ptr() for p in model.base.parameters()}
    assert not frozen & {p.data_ptr() for p in sender.parameters() if p.requires_grad}
    assert all(name.startswith(("trunk.", "head.")) for name in sender.trained_state())


def test_three_adapters_on_one_base_do_not_meet(tiny_model_path: Path) -> None:
    """Guards against adapter switching: generator and two surrogates on one UNet act as if each had its own copy."""
    latents: torch.Tensor
    alone = load_model(ModelSettings(path=str(tiny_model_path), device="cpu"))
    latents, timesteps, noise = inputs(alone)
    expected = surrogate(alone, "adapter", seed=1)(latents, timesteps, noise, alone.embed(PROMPTS))
    shared = load_model(ModelSettings(path=str(tiny_model_path), device="cpu"))
    generator = shared.add_lora(LoraSettings(rank=2), seed=0)
    first, second = surrogate(shared, "adapter", seed=1), surrogate(shared, "adapter", seed=2)
    with torch.no_grad():
        for parameter in [*generator, *(p for p in second.parameters() if p.requires_grad)]:
            parameter.add_(1.0)
    torch.testing.assert_close(first(latents, timesteps, noise, shared.embed(PROMPTS)), expected)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_gradient_is_that_of_the_score(model: UNetGenerator, trunk: str) -> None:
    """Guards against a detached path: the directional derivative must match finite differences (float32)."""
    latents, timesteps, noise = inputs(model)
    conditioning, reward = model.embed(PROMPTS), surrogate(model, trunk)
    with torch.no_grad():  # as sampling and the service call it: the gradient must be had all the same
        scores, gradient = score_and_gradient(reward, latents, timesteps, noise, conditioning)
    direction, step = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3)), 1e-2
    with torch.no_grad():
        ahead, behind = (reward(latents + sign * step * direction, timesteps, noise, conditioning) for sign in (1, -1))
    numeric = (ahead - behind) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum((1, 2, 3)), numeric, rtol=2e-2, atol=1e-4)
    torch.testing.assert_close(scores, reward(latents, timesteps, noise, conditioning).detach())
    assert all(p.grad is None for p in reward.parameters())


def test_misfitting_weights_are_named(model: UNetGenerator) -> None:
    """Guards against loading a part of somebody else's weights, which scores nonsense without a word."""
    full, adapter = surrogate(model, "full"), surrogate(model, "adapter")
    with pytest.raises(WireError, match="names differ"):
        full.load_trained(adapter.trained_state())
    state = full.trained_state()
    name = next(iter(state))
    state[name] = state[name][:1]
    with pytest.raises(WireError, match=f"{name} has shape"):
        full.load_trained(state)


def test_head_takes_any_feature_map() -> None:
    """Guards against a head tied to 4x4 maps: LCM-SSD-1B's mid block gives 32x32."""
    head = cnn_head(32, 8)
    assert head(torch.zeros(2, 32, 4, 4)).shape == head(torch.zeros(2, 32, 32, 32)).shape == (2, 1)


def test_augmentation_stays_below_its_limit() -> None:
    """Guards against diffusing to the limit itself, or drawing other numbers for the same seed."""
    first = draw_augmentation((500, 1, 1, 1), 3, torch.Generator().manual_seed(0))
    again = draw_augmentation((500, 1, 1, 1), 3, torch.Generator().manual_seed(0))
    assert set(first[0].tolist()) == {0, 1, 2}
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("mid_block", ["UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None])
def test_every_mid_block_of_distilled_unets(model: UNetGenerator, mid_block: str | None) -> None:
    """Guards against LCM-SSD-1B failing: its distilled UNet has a mid block without attention, others have none."""
    config = {**model.base.config, "mid_block_type": mid_block}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet: Any = UNet2DConditionModel.from_config(config)
        unet.eval()
    x_t, timesteps, _ = inputs(model)
    conditioning = model.embed(PROMPTS)
    seen: list[Any] = []
    part = unet.down_blocks[-1] if mid_block is None else unet.mid_block
    hook = part.register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    with torch.no_grad():
        unet(x_t, timesteps, **model.unet_arguments(conditioning))
        hook.remove()
        trunk = UNetEncoder(unet, model.unet_arguments)
        trunk.train_blocks()
        features = trunk(x_t, timesteps, conditioning)
    expected = seen[0][0] if mid_block is None else seen[0]
    torch.testing.assert_close(features, expected)
