"""Models of the SD1.5 and SD2.1 classes to test with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_model import BUNDLED, diffusers, tiny_text_config, tiny_vae
from transformers import CLIPTextModel, CLIPTokenizer


def write_tiny_sd15(folder: Path, guidance_embedding: bool = True) -> Path:
    """A random SD1.5-class consistency model: latents 4 x 8 x 8, images 16 x 16; its tokenizer is a bundled one."""
    return _write(
        folder,
        {"attention_head_dim": 8, "time_cond_proj_dim": 16 if guidance_embedding else None},
        diffusers.LCMScheduler.from_pretrained(BUNDLED, subfolder="scheduler", steps_offset=1),
    )


def write_tiny_sd2(folder: Path, scheduler: Any) -> Path:
    """A random SD2.1-class model, as SD-Turbo is: OpenCLIP's activation, linear projections, heads of a fixed width."""
    unet = {"attention_head_dim": (1, 2), "use_linear_projection": True, "upcast_attention": True}
    return _write(folder, unet, scheduler, "gelu")


def _write(folder: Path, unet: dict[str, Any], scheduler: Any, text_activation: str = "quick_gelu") -> Path:
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED / "tokenizer")
    text_config = tiny_text_config(tokenizer, hidden_size=32)
    text_config.hidden_act = text_activation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = diffusers.StableDiffusionPipeline(
            vae=tiny_vae(scaling_factor=0.18215),
            text_encoder=CLIPTextModel(text_config),
            tokenizer=tokenizer,
            unet=diffusers.UNet2DConditionModel(
                sample_size=8, block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, **unet,
            ),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
