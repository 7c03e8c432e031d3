"""The parts of the model: stock diffusers and transformers classes at toy size, and prompts through them.

Shape legend: B batch, L tokens, D embedding, P pooled embedding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lasro.models.quiet  # noqa: F401  (before diffusers)

# isort: split

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lasro.errors import ModelError
from tiny_recipe.config import Recipe

LATENT_CHANNELS = 4
TIME_IDS = 6  # original size, crop and target size, as SDXL takes them
TIME_ID_WIDTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"  # the end also pads
M = TypeVar("M", bound=nn.Module)

TEXT_PREFIX = "text_model."  # stands before the names of a text encoder's weights in some versions, not in others


def on(module: M, device: torch.device) -> M:
    """The module itself, moved; its convolutions with channels last, which is faster."""
    stated_loosely: Any = module  # diffusers annotates its `to` as something else
    return stated_loosely.to(device, memory_format=torch.channels_last)


def encode(vae: AutoencoderKL, images_B3HW: Tensor) -> Tensor:
    """The posterior's mean [B, C, h, w]; not scaled."""
    return vae.encode(images_B3HW, return_dict=False)[0].mean


def decode(vae: AutoencoderKL, latents_BChw: Tensor) -> Tensor:
    """Images [B, 3, H, W], about [-1, 1]; latents not scaled."""
    decoder: Any = vae
    return decoder.decode(latents_BChw, return_dict=False)[0]


def scheduler(recipe: Recipe) -> LCMScheduler:
    return LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False,
        original_inference_steps=recipe.lcm.solver_steps,
    )  # fmt: skip


def alphas_cumprod(recipe: Recipe, device: torch.device) -> Tensor:
    """abar_t of the noise schedule, float32 [1000]."""
    return scheduler(recipe).alphas_cumprod.to(device)


def new_vae(recipe: Recipe) -> AutoencoderKL:
    channels = recipe.vae.channels
    make: Any = AutoencoderKL  # its annotations refuse tuples of more than one
    return make(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels, layers_per_block=1, latent_channels=LATENT_CHANNELS,
        norm_num_groups=8, sample_size=recipe.data.image_px,
    )  # fmt: skip


def new_text_encoders(recipe: Recipe, tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    """`text_encoder` and `text_encoder_2`, as the pipeline calls them."""
    text, ids = recipe.text, tokenizer.convert_tokens_to_ids([START, END])
    assert isinstance(ids, list)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=text.width, intermediate_size=4 * text.width,
        num_hidden_layers=text.layers, num_attention_heads=text.width // text.head_width,
        max_position_embeddings=text.max_tokens, projection_dim=text.width, hidden_act="gelu",
        bos_token_id=ids[0], eos_token_id=ids[1], pad_token_id=ids[1],
    )  # fmt: skip
    return nn.ModuleDict({"text_encoder": CLIPTextModel(config), "text_encoder_2": CLIPTextModelWithProjection(config)})


def new_unet(recipe: Recipe, guidance_width: int | None = None) -> UNet2DConditionModel:
    """A UNet; with a guidance embedding where `guidance_width` is given."""
    channels, attending = recipe.unet.channels, len(recipe.unet.channels) - 1
    make: Any = UNet2DConditionModel
    return make(
        sample_size=recipe.latent_px, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * attending),
        up_block_types=(*("CrossAttnUpBlock2D",) * attending, "UpBlock2D"),
        block_out_channels=channels, layers_per_block=1,
        transformer_layers_per_block=(1,) * len(channels),
        attention_head_dim=tuple(c // recipe.unet.head_width for c in channels),
        cross_attention_dim=2 * recipe.text.width, use_linear_projection=True, norm_num_groups=16,
        addition_embed_type="text_time", addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=recipe.text.width + TIME_IDS * TIME_ID_WIDTH,
        time_cond_proj_dim=guidance_width,
    )  # fmt: skip


def new_tokenizer(recipe: Recipe, corpus: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer with a vocabulary of its own, learned from the corpus."""
    empty = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[], model_max_length=recipe.text.max_tokens)
    return empty.train_new_from_iterator([list(corpus)], recipe.text.vocabulary, show_progress=False)


def saved_tokenizer(recipe: Recipe, path: Path) -> CLIPTokenizer:
    """The tokenizer of a `tokenizer.json`; raises ModelError."""
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: not a tokenizer ({error}); run the teacher stage again") from error
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=recipe.text.max_tokens)


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """int64 [B, L], padded, and cut where a caption is too long."""
    encoded = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
    return encoded.input_ids


def embed(encoders: nn.ModuleDict, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
    """What SDXL makes of a prompt: states [B, L, D] of both encoders' last layers but one, pooled [B, P]."""
    first = encoders["text_encoder"](tokens_BL, output_hidden_states=True)
    second = encoders["text_encoder_2"](tokens_BL, output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds


def added_conditions(pooled_BP: Tensor, image_px: int) -> dict[str, Tensor]:
    """Pooled embedding and sizes, as an SDXL UNet takes them."""
    time_ids = torch.tensor([image_px, image_px, 0, 0, image_px, image_px], device=pooled_BP.device)
    return {"text_embeds": pooled_BP, "time_ids": time_ids.to(pooled_BP.dtype).expand(len(pooled_BP), TIME_IDS)}


def plain_names(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights under names that do not depend on the version of transformers."""
    return {name.replace(TEXT_PREFIX, ""): tensor for name, tensor in module.state_dict().items()}


def frozen(module: M, tensors: Mapping[str, Tensor], device: torch.device) -> M:
    """The module with these weights, moved, and not to be trained any more; raises ModelError."""
    load_plain(module, tensors)
    return on(module, device).requires_grad_(False).eval()


def load_plain(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill a module from weights under plain names; raises ModelError where one is missing or has another shape."""
    try:
        module.load_state_dict({name: tensors[name.replace(TEXT_PREFIX, "")] for name in module.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"saved weights do not fit ({error}); they were made by another recipe") from error
