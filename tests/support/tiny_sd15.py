"""A model of the SD1.5 family to test with."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_model import BUNDLED, diffusers, tiny_text_config, tiny_vae
from transformers import CLIPTextModel, CLIPTokenizer


def write_tiny_sd15(folder: Path, guidance_embedding: bool = True) -> Path:
    """A random SD1.5-class consistency model: latents 4 x 8 x 8, images 16 x 16; its tokenizer is a bundled one."""
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = diffusers.StableDiffusionPipeline(
            vae=tiny_vae(scaling_factor=0.18215),
            text_encoder=CLIPTextModel(tiny_text_config(tokenizer, hidden_size=32)),
            tokenizer=tokenizer,
            unet=diffusers.UNet2DConditionModel(
                sample_size=8, block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=8,
                time_cond_proj_dim=16 if guidance_embedding else None,
            ),
            scheduler=diffusers.LCMScheduler.from_pretrained(BUNDLED, subfolder="scheduler", steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
