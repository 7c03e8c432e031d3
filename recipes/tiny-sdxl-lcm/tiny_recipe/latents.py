"""The pool that teacher and distillation draw from: latents and tokens of captioned images, kept on the device.

Shape legend: N latents, B of a batch, C channels, H, W latent cells, L tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from lasro.models.device import autocast
from tiny_recipe.config import Recipe
from tiny_recipe.data import TrainingData
from tiny_recipe.networks import decode, encode, tokenize
from tiny_recipe.stage import seed_of
from tiny_recipe.vae import FrozenVae

ENCODED_AT_ONCE = 256
EVALUATION_PROMPTS = (
    "a red circle left of a blue square",
    "a green star above a yellow heart on a navy background",
    "a purple ring and a orange triangle",
    "a black cross on a mint background",
    "dog face, noto style",
    "red apple, fluent style",
    "rocket",
    "sunflower, fluent flat style on a sky background",
)
SEEDS_PER_PROMPT = 4


class Pool(NamedTuple):
    """Latents bfloat16 [N, C, H, W] of standard deviation 1, and tokens int16 [N, L]."""

    latents_NCHW: Tensor
    tokens_NL: Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents float32 [B, C, H, W] and tokens int64 [B, L]."""
        device = self.latents_NCHW.device
        index_B = torch.randint(len(self.latents_NCHW), (count,), generator=generator, device=device)
        return self.latents_NCHW[index_B].float(), self.tokens_NL[index_B].long()


@torch.no_grad()
def encode_pool(
    recipe: Recipe, data: TrainingData, vae: FrozenVae, tokenizer: CLIPTokenizer, device: torch.device
) -> Pool:
    """Draw, encode and tokenize `recipe.data.pool` images; the same for the same recipe and weights."""
    generator = torch.Generator(device).manual_seed(seed_of(recipe.seed, "pool", 0))
    tokens_NL = tokenize(tokenizer, data.captions).to(torch.int16).to(device)
    latents, tokens = [], []
    for start in range(0, recipe.data.pool, ENCODED_AT_ONCE):
        drawn, place_B = data.captioned_batch(min(ENCODED_AT_ONCE, recipe.data.pool - start), generator)
        images = drawn.images.contiguous(memory_format=torch.channels_last)
        with autocast(device, "auto"):
            mean = encode(vae.network, images)
        latents.append((mean.float() * vae.scaling_factor).to(torch.bfloat16))
        tokens.append(tokens_NL[place_B])
    return Pool(torch.cat(latents), torch.cat(tokens))


def evaluation_tokens(tokenizer: CLIPTokenizer, device: torch.device) -> Tensor:
    """Of the prompts that the grids show, each for a few seeds, int64 [B, L]."""
    return tokenize(tokenizer, [p for p in EVALUATION_PROMPTS for _ in range(SEEDS_PER_PROMPT)]).to(device)


@torch.no_grad()
def decoded(vae: FrozenVae, latents_BCHW: Tensor) -> Tensor:
    """Images [B, 3, H, W], about [-1, 1], of latents of standard deviation 1."""
    return torch.cat([decode(vae.network, part / vae.scaling_factor) for part in latents_BCHW.float().split(32)])
