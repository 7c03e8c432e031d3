"""A model to test with."""

from __future__ import annotations

import importlib
import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

diffusers: Any = importlib.import_module("diffusers")  # its annotations refuse tuples of more than one
BUNDLED = Path(str(importlib.resources.files("lasro"))) / "assets" / "tiny-sdxl-lcm"


def tiny_text_config(tokenizer: Any, hidden_size: int) -> CLIPTextConfig:
    """Of a text encoder of one layer for that `CLIPTokenizer`, whose annotations let the id of a token be a string."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=32, projection_dim=16,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length, bos_token_id=0,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def tiny_vae(scaling_factor: float) -> Any:
    """A random one: 16 x 16 pixels to latents 4 x 8 x 8."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, sample_size=16, scaling_factor=scaling_factor,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


TWO_LEVELS = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (1, 2),
}
ONE_LEVEL = {
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "mid_block_type": None,
    "up_block_types": ("UpBlock2D",),
    "attention_head_dim": 1,
}
"""A third of the modules, so a third of the time: a pass through so small a network is all Python."""


def write_tiny_model(folder: Path, guidance_embedding: bool = True, unet: Mapping[str, Any] = TWO_LEVELS) -> Path:
    """A random SDXL-class consistency model far smaller than the bundled one: latents 4 x 8 x 8, images 16 x 16.

    Only its tokenizers are the bundled ones. `unet`: settings of its UNet, two levels or one.
    """
    tokenizers = [CLIPTokenizer.from_pretrained(BUNDLED / name) for name in ("tokenizer", "tokenizer_2")]
    text_config = tiny_text_config(tokenizers[0], hidden_size=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = diffusers.StableDiffusionXLPipeline(
            vae=tiny_vae(scaling_factor=0.5),
            text_encoder=CLIPTextModel(text_config),
            text_encoder_2=CLIPTextModelWithProjection(text_config),
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            unet=diffusers.UNet2DConditionModel(
                sample_size=8, norm_num_groups=8, layers_per_block=1, cross_attention_dim=32,
                use_linear_projection=True,
                time_cond_proj_dim=16 if guidance_embedding else None,
                addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=16 + 6 * 8, **unet,
            ),
            scheduler=diffusers.LCMScheduler.from_pretrained(BUNDLED, subfolder="scheduler"),
            add_watermarker=False,
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
