"""A model of the SD1.5 family to test with."""

from __future__ import annotations

import importlib
import importlib.resources
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def write_tiny_sd15(folder: Path, guidance_embedding: bool = True) -> Path:
    """A random SD1.5-class consistency model: latents 4 x 8 x 8, images 16 x 16; its tokenizer is a bundled one."""
    diffusers: Any = importlib.import_module("diffusers")  # its annotations refuse tuples of more than one
    bundled = Path(str(importlib.resources.files("lasro"))) / "assets" / "tiny-sdxl-lcm"
    tokenizer = CLIPTokenizer.from_pretrained(bundled / "tokenizer")
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, bos_token_id=0, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = diffusers.StableDiffusionPipeline(
            vae=diffusers.AutoencoderKL(
                block_out_channels=(8, 8), norm_num_groups=4, sample_size=16, scaling_factor=0.18215,
                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            ),
            text_encoder=CLIPTextModel(text_config),
            tokenizer=tokenizer,
            unet=diffusers.UNet2DConditionModel(
                sample_size=8, block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=8,
                time_cond_proj_dim=16 if guidance_embedding else None,
            ),
            scheduler=diffusers.LCMScheduler.from_pretrained(bundled, subfolder="scheduler", steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
