"""A random AutoencoderTiny for the models of `tiny_model` and `tiny_sd15`: two pixels of a latent's side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_model import diffusers


def write_tiny_autoencoder(folder: Path, **config: Any) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        defaults = {
            "encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4),
            "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1),
        }  # fmt: skip
        diffusers.AutoencoderTiny(**defaults | config).save_pretrained(folder)
    return folder
