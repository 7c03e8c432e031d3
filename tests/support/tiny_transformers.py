"""Models of the transformer families to test with: random, of the true architecture, latents 8 x 8 or 4 x 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_model import diffusers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHAT = """{% for message in messages %}<user> {{ message.content }} <end>
{% endfor %}{% if add_generation_prompt %}<assistant>{% if not enable_thinking %} <nothought>{% endif %}{% endif %}"""
CHAT_WORDS = "<user> <end> <assistant> <nothought>"
WORDS = "a red blue circle square left of the cat dog star"


def tiny_tokenizer(text: str = "", template: str | None = None) -> Any:
    """A tokenizer of words, those of the tests and of `text`, which begins every text with <bos>."""
    words = dict.fromkeys([*SPECIAL, *WORDS.split(), *text.split()])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)


def tiny_decoder_config(kind: Any, tokenizer: Any, layers: int, positions: int) -> Any:
    """Of a language model 16 wide for that tokenizer."""
    return kind(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=positions,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, sliding_window=4096,
    )  # fmt: skip


def write_tiny_sana(folder: Path, **config: Any) -> Path:
    """SANA-Sprint: latents 4 x 8 x 8, images 32 x 32, two blocks; `config`: of its transformer."""
    tokenizer = tiny_tokenizer(text="Given a user prompt, generate an")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = diffusers.SanaSprintPipeline(
            tokenizer=tokenizer,
            text_encoder=Gemma2Model(tiny_decoder_config(Gemma2Config, tokenizer, layers=1, positions=8192)),
            vae=diffusers.AutoencoderDC(
                latent_channels=4, attention_head_dim=4, scaling_factor=0.41407,
                encoder_block_types="ResBlock", decoder_block_types="ResBlock",
                encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
                encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
                encoder_qkv_multiscales=((), (), ()), decoder_qkv_multiscales=((), (), ()),
                upsample_block_type="interpolate", downsample_block_type="Conv",
            ),
            transformer=diffusers.SanaTransformer2DModel(**{
                "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16,
                "num_layers": 2, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16,
                "cross_attention_dim": 32, "caption_channels": 16, "sample_size": 8, "guidance_embeds": True,
                "qk_norm": "rms_norm_across_heads", **config,
            }),
            scheduler=diffusers.SCMScheduler(),
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def write_tiny_z_image(folder: Path, shift: float = 3.0, **config: Any) -> Path:
    """Z-Image: latents 4 x 8 x 8, images 16 x 16, three main blocks; `config`: of its transformer."""
    tokenizer = tiny_tokenizer(CHAT_WORDS, CHAT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = diffusers.ZImagePipeline(
            tokenizer=tokenizer,
            text_encoder=Qwen3Model(tiny_decoder_config(Qwen3Config, tokenizer, layers=2, positions=1024)),
            vae=diffusers.AutoencoderKL(
                block_out_channels=(8, 8), norm_num_groups=4, sample_size=16, scaling_factor=0.3611,
                shift_factor=0.1159, force_upcast=True, use_quant_conv=False, use_post_quant_conv=False,
                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            ),
            transformer=diffusers.ZImageTransformer2DModel(**{
                "in_channels": 4, "dim": 32, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
                "cap_feat_dim": 16, "axes_dims": [8, 4, 4], "axes_lens": [1024, 32, 32], **config,
            }),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
        )  # fmt: skip
        for name, parameter in pipeline.transformer.named_parameters():
            if "pad_token" in name:  # zeros at first: what is trained is none
                torch.nn.init.normal_(parameter)
    pipeline.save_pretrained(folder)
    return folder


def write_tiny_flux2(folder: Path, is_distilled: bool = True, **config: Any) -> Path:
    """FLUX.2-klein: latents 16 x 4 x 4, images 16 x 16, one double and three single blocks, 27 layers of text encoder.

    `config`: of its transformer.
    """
    tokenizer = tiny_tokenizer(CHAT_WORDS, CHAT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = diffusers.Flux2KleinPipeline(
            tokenizer=tokenizer,
            text_encoder=Qwen3ForCausalLM(tiny_decoder_config(Qwen3Config, tokenizer, layers=27, positions=1024)),
            vae=diffusers.AutoencoderKLFlux2(
                block_out_channels=(8, 8), norm_num_groups=4, sample_size=16, latent_channels=4,
                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            ),
            transformer=diffusers.Flux2Transformer2DModel(**{
                "in_channels": 16, "num_layers": 1, "num_single_layers": 3, "num_attention_heads": 2,
                "attention_head_dim": 16, "joint_attention_dim": 48, "timestep_guidance_channels": 16,
                "axes_dims_rope": (4, 4, 4, 4), "guidance_embeds": False, **config,
            }),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
            is_distilled=is_distilled,
        )  # fmt: skip
        pipeline.vae.bn.running_mean.normal_()
        pipeline.vae.bn.running_var.uniform_(0.5, 2.0)
    pipeline.save_pretrained(folder)
    return folder
