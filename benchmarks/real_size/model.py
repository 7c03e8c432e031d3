"""A model of SSD-1B's true architecture with random weights, as a diffusers folder; or a tiny one of the same kinds.

No 1.3 billion numbers are drawn: a million are, and every weight takes its own from there on, scaled by its fan-in.
"""

from __future__ import annotations

import json
import math
import shutil
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import lasro.models.quiet  # noqa: F401  (before diffusers)

# isort: split

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

HERE = Path(__file__).parent
BUNDLED = Path(str(files("lasro"))) / "assets" / "tiny-sdxl-lcm"
DRAWN = 1_000_003
"""Numbers drawn; a prime, so that no two rows of a weight are the same."""
TOKENS = 77
SDXL_ENCODERS: dict[str, dict[str, Any]] = {
    "text_encoder": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "projection_dim": 768, "vocab_size": 49408,
    },
    "text_encoder_2": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
        "projection_dim": 1280, "vocab_size": 49408, "hidden_act": "gelu",
    },
}  # fmt: skip
"""Of CLIP ViT-L and OpenCLIP ViT-bigG."""
TINY_ENCODERS: dict[str, dict[str, Any]] = {
    name: {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "projection_dim": 32, "vocab_size": 4096,
    }
    for name in SDXL_ENCODERS
}  # fmt: skip
TINY_UNET = {
    "block_out_channels": [32, 64, 64], "attention_head_dim": [1, 2, 2], "cross_attention_dim": 64,
    "projection_class_embeddings_input_dim": 32 + 6 * 16, "addition_time_embed_dim": 16, "time_cond_proj_dim": 32,
    "transformer_layers_per_block": 1, "reverse_transformer_layers_per_block": None,
}  # fmt: skip
TINY_VAE = {"block_out_channels": [32] * 4, "layers_per_block": 1}


def write_model(folder: Path, dtype: torch.dtype, tiny: bool) -> None:
    """Write the folder, unless it is there whole."""
    if (folder / "model_index.json").exists():
        return
    for name in ("scheduler", "tokenizer", "tokenizer_2"):
        shutil.copytree(BUNDLED / name, folder / name, dirs_exist_ok=True)
    for name in ("tokenizer", "tokenizer_2"):
        path = folder / name / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": TOKENS}))
    numbers = torch.randn(DRAWN, generator=torch.Generator().manual_seed(0)).to(dtype)
    unet, vae = _read("ssd-1b-lcm.unet.json"), _read("sdxl.vae.json")
    _write(UNet2DConditionModel, unet | TINY_UNET if tiny else unet, folder / "unet", numbers)
    _write(AutoencoderKL, vae | TINY_VAE if tiny else vae, folder / "vae", numbers)
    for (name, sizes), kind in zip(
        (TINY_ENCODERS if tiny else SDXL_ENCODERS).items(), (CLIPTextModel, CLIPTextModelWithProjection), strict=True
    ):
        config = CLIPTextConfig(
            **sizes, max_position_embeddings=TOKENS, bos_token_id=0, eos_token_id=1, pad_token_id=1, dtype=dtype
        )
        with torch.device("meta"):
            network = kind(config)
        config.save_pretrained(folder / name)
        save_file(filled(network, numbers), folder / name / "model.safetensors", {"format": "pt"})
    shutil.copy(BUNDLED / "model_index.json", folder)  # last: what is written so far is not whole


def _read(name: str) -> dict[str, Any]:
    return json.loads((HERE / name).read_text())


def _write(kind: Any, config: dict[str, Any], folder: Path, numbers: Tensor) -> None:
    with torch.device("meta"):
        network = kind.from_config(config)
    network.save_config(folder)
    save_file(filled(network, numbers), folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def filled(network: nn.Module, numbers: Tensor) -> dict[str, Tensor]:
    """Weights by name: norms are 1, biases 0, all else normal with a standard deviation of 1 / sqrt(fan-in)."""
    shapes = {name: weight.shape for name, weight in network.state_dict().items()}
    ends = accumulate(shape.numel() for shape in shapes.values())
    return {
        name: _weight(name, shape, numbers.roll(end)) for (name, shape), end in zip(shapes.items(), ends, strict=True)
    }


def _weight(name: str, shape: torch.Size, numbers: Tensor) -> Tensor:
    if len(shape) == 1:
        return torch.full(shape, float(name.endswith("weight")), dtype=numbers.dtype)
    count = shape.numel()
    values = numbers.repeat(math.ceil(count / len(numbers)))[:count].reshape(shape)
    return values.mul_(1 / math.sqrt(shape[1:].numel()))
