"""Converted checkpoints give what the original networks give, here written out once more in plain torch.

Shape legend: B batch, L tokens, D features.
"""

from __future__ import annotations

import importlib.resources
import pickle
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, CLIPConfig, CLIPTokenizer

from lasro_rewards import convert, image_reward
from lasro_rewards.clip_features import clip_features
from lasro_rewards.hps_v2 import hps_v2
from lasro_rewards.pixels import cropped, padded
from lasro_rewards.settings import settings

TOKENIZER = Path(str(importlib.resources.files("lasro"))) / "assets" / "tiny-sdxl-lcm" / "tokenizer"
WIDTH, LAYERS, HEADS, SIZE_PX, PATCH_PX = 16, 2, 2, 16, 8
PROMPTS = ["a red circle", "two blue squares"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "two", "blue", "squares"]


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3)).astype(np.uint8))


IMAGES = [noise(0), noise(1)]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Models are kept for the process: each test brings its own; random numbers are those of the test."""
    for cached in (settings, clip_features, image_reward._model):
        cached.cache_clear()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    for cached in (settings, clip_features, image_reward._model):
        cached.cache_clear()


class Block(nn.Module):
    """A transformer layer with open_clip's names."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, x_BLD: Tensor, mask_LL: Tensor | None = None) -> Tensor:
        y = self.ln_1(x_BLD)
        x_BLD = x_BLD + self.attn(y, y, y, need_weights=False, attn_mask=mask_LL)[0]
        return x_BLD + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x_BLD))))


class OpenClip(nn.Module):
    """CLIP with open_clip's names."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.visual = nn.Module()
        self.visual.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.visual.positional_embedding = nn.Parameter(torch.randn((SIZE_PX // PATCH_PX) ** 2 + 1, WIDTH))
        self.visual.proj = nn.Parameter(torch.randn(WIDTH, 12))
        self.visual.conv1 = nn.Conv2d(3, WIDTH, PATCH_PX, PATCH_PX, bias=False)
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.visual.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block() for _ in range(LAYERS))})
        self.token_embedding = nn.Embedding(vocabulary, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(77, WIDTH))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block() for _ in range(LAYERS))})
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, 12))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def image(self, pixels: Tensor) -> Tensor:
        eye: Any = self.visual
        x = eye.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([eye.class_embedding.expand(len(x), 1, -1), x], 1) + eye.positional_embedding
        x = eye.ln_pre(x)
        for block in eye.transformer["resblocks"]:
            x = block(x)
        return eye.ln_post(x[:, 0]) @ eye.proj

    def text(self, ids_BL: Tensor, end: int) -> Tensor:
        length = ids_BL.shape[1]
        x = self.token_embedding(ids_BL) + self.positional_embedding[:length]
        mask = torch.full((length, length), float("-inf")).triu(1)
        blocks: Any = self.transformer["resblocks"]
        for block in blocks:
            x = block(x, mask)
        return self.ln_final(x)[:, end] @ self.text_projection


def test_hps_v2_is_the_open_clip_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards every renamed, split and transposed tensor: two swapped matrices of one shape would load all the same."""
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    base = tmp_path / "base"
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS, "hidden_act": "gelu"}
    text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 0}
    CLIPConfig(
        projection_dim=12,
        text_config=tower | text | {"num_attention_heads": HEADS, "pad_token_id": tokenizer.pad_token_id},
        vision_config=tower | {"num_attention_heads": HEADS, "image_size": SIZE_PX, "patch_size": PATCH_PX},
    ).save_pretrained(base)
    tokenizer.save_pretrained(base)
    original = OpenClip(len(tokenizer)).eval()
    torch.save({"state_dict": original.state_dict()}, tmp_path / "HPS.pt")
    assert convert.main(["hps-v2", str(tmp_path / "HPS.pt"), str(tmp_path / "out"), "--base", str(base)]) == 0
    monkeypatch.setenv("LASRO_HPS_V2_MODEL", str(tmp_path / "out"))
    expected = []
    with torch.inference_mode():
        for image, prompt in zip(IMAGES, PROMPTS, strict=True):
            seen = original.image(torch.from_numpy(padded([image], SIZE_PX)))
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            said = original.text(ids, ids[0].tolist().index(tokenizer.eos_token_id))
            expected.append(torch.cosine_similarity(seen, said).item())
    assert hps_v2(IMAGES, PROMPTS) == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


class Eye(nn.Module):
    """BLIP's vision transformer with its own names."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, (SIZE_PX // PATCH_PX) ** 2 + 1, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH_PX, PATCH_PX)})
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(WIDTH, eps=1e-6),
                    "attn": nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)}),
                    "norm2": nn.LayerNorm(WIDTH, eps=1e-6),
                    "mlp": nn.ModuleDict({"fc1": nn.Linear(WIDTH, 32), "fc2": nn.Linear(32, WIDTH)}),
                }
            )
            for _ in range(LAYERS)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            layer: Any = block
            y = layer["attn"]["qkv"](layer["norm1"](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(*y).transpose(1, 2).flatten(2)
            x = x + layer["attn"]["proj"](y)
            x = x + layer["mlp"]["fc2"](F.gelu(layer["mlp"]["fc1"](layer["norm2"](x))))
        return self.norm(x)


def test_image_reward_is_the_original_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards renaming, the first token, the linear head and the standardisation."""
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    vision = sizes | {"image_size": SIZE_PX, "patch_size": PATCH_PX, "layer_norm_eps": 1e-6}
    text: dict[str, Any] = sizes | {"vocab_size": len(WORDS), "encoder_hidden_size": WIDTH, "is_decoder": True}
    monkeypatch.setattr(convert, "VIT_LARGE", vision)
    monkeypatch.setattr(convert, "BERT_BASE", text)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    tokenizer = BertTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    eye = Eye().eval()
    reader = BlipTextModel(BlipTextConfig(**text, initializer_range=0.5), add_pooling_layer=False).eval()
    widths = (WIDTH, 1024, 128, 64, 16, 1)
    layers = [nn.Linear(one, two) for one, two in pairwise(widths)]
    head = nn.Sequential(layers[0], nn.Dropout(), layers[1], nn.Dropout(), layers[2], nn.Dropout(), *layers[3:]).eval()
    state = {f"blip.visual_encoder.{name}": tensor for name, tensor in eye.state_dict().items()}
    state |= {f"blip.text_encoder.{name}": tensor for name, tensor in reader.state_dict().items()}
    state |= {f"mlp.layers.{name}": tensor for name, tensor in head.state_dict().items()}
    state |= {
        "blip.itm_head.weight": torch.zeros(2, WIDTH),
        "blip.text_encoder.embeddings.position_ids": torch.ones(1, 5),
    }
    torch.save(state, tmp_path / "ImageReward.pt")
    given = [str(tmp_path / "ImageReward.pt"), str(tmp_path / "out"), "--base", str(tmp_path / "base")]
    assert convert.main(["image-reward", *given]) == 0
    monkeypatch.setenv("LASRO_IMAGE_REWARD_MODEL", str(tmp_path / "out"))
    expected = []
    with torch.inference_mode():
        for image, prompt in zip(IMAGES, PROMPTS, strict=True):
            tokens = tokenizer(prompt, return_tensors="pt")
            patches = eye(torch.from_numpy(cropped([image], SIZE_PX)))
            read = reader(
                tokens["input_ids"], attention_mask=tokens["attention_mask"], encoder_hidden_states=patches
            ).last_hidden_state
            expected.append((head(read[:, 0]).item() - 0.16717362830052426) / 1.0333394966054072)
    assert image_reward.image_reward(IMAGES, PROMPTS) == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-4


def test_the_aesthetic_head_keeps_its_tensors(tmp_path: Path) -> None:
    """Guards the plain case: same names, same numbers, as safetensors."""
    torch.save({"layers.0.weight": torch.arange(4.0).reshape(2, 2).T}, tmp_path / "head.pth")
    assert convert.main(["aesthetic", str(tmp_path / "head.pth"), str(tmp_path / "head.safetensors")]) == 0
    assert load_file(tmp_path / "head.safetensors")["layers.0.weight"].tolist() == [[0, 2], [1, 3]]


class Trap:
    """A pickle that would run code when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('code from a checkpoint ran')",))


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against running what a downloaded pickle says."""
    torch.save({"layers.0.weight": Trap()}, tmp_path / "trap.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    for name in ("trap.pth", "bare.pth", "absent.pth"):
        assert convert.main(["aesthetic", str(tmp_path / name), str(tmp_path / "out.safetensors")]) == 1
        message = capsys.readouterr().err.strip()
        assert name in message
        assert "\n" not in message
    assert not (tmp_path / "out.safetensors").exists()
