"""A surrogate whose trunk checkpoints its blocks beside one that does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lasro.config import SurrogateSettings
from lasro.models.base import GeneratorModel
from lasro.models.surrogate import build_surrogate, draw_augmentation, score_and_gradient


def check_trunk_checkpoints(
    plain: GeneratorModel, checkpointed: GeneratorModel, prompts: Sequence[str], trunk: str
) -> None:
    """Same scores and gradients of latents and weights, of which fewer bytes are kept for the way back."""
    found = [_scored_and_trained(model, prompts, trunk) for model in (plain, checkpointed)]
    (expected, whole), (got, kept) = found
    assert kept < 0.6 * whole
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def _scored_and_trained(model: GeneratorModel, prompts: Sequence[str], trunk: str) -> tuple[list[Tensor], int]:
    settings = {"trunk": trunk, "adapter_rank": 2, "head_channels": 8}
    surrogate = build_surrogate(model, SurrogateSettings.model_validate(settings))
    draws, saved = torch.Generator().manual_seed(0), {}
    latents = torch.randn(len(prompts), *model.latent_shape, generator=draws)
    inputs = (latents, *draw_augmentation(latents.shape, 200, draws), model.embed(prompts))
    own = {each.untyped_storage().data_ptr() for each in surrogate.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores_B = surrogate(*inputs)
    scores_B.square().sum().backward()
    trained = [each.grad for each in surrogate.parameters() if each.grad is not None]
    assert len(trained) == sum(each.requires_grad for each in surrogate.parameters())
    return [*score_and_gradient(surrogate, *inputs), *trained], sum(saved.values())
