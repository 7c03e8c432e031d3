"""Models of a true architecture with random weights, in seconds: a benchmark needs their size and not their pictures.

    python -m benchmarks.random_weights ssd-1b models/ssd-1b --dtype float32

`benchmarks/architectures` has the configurations. Random numbers are drawn once and repeated in every weight: to draw
billions of them takes minutes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lasro.models.quiet  # noqa: F401  (before diffusers)

# isort: split

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from lasro.config.base import BUNDLED
from lasro.models.files import local_source

ARCHITECTURES = Path(__file__).parent / "architectures"
DRAWN = 1_048_573
"""How many numbers are drawn. A prime: no two rows of a weight begin at the same of them."""
SHARD_BYTES = 1 << 30
WORDS = "<pad> <bos> <eos> <unk> <user> <end> <assistant> a photo of red blue cat dog house tree on the left right"
CHAT = "{% for message in messages %}<user> {{ message.content }} <end>{% endfor %} <assistant>"


def write_model(architecture: str, folder: Path, dtype: str | None = "bfloat16") -> Path:
    """Write a diffusers folder with weights of `dtype`, or without any, for what looks at shapes alone; returns it.

    `architecture`: a name in `benchmarks/architectures`, or the path of a folder like those.
    """
    source = ARCHITECTURES / architecture
    shutil.copytree(source, folder, dirs_exist_ok=True)
    index = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    for part, named in index.items():
        if not isinstance(named, list) or None in named or part == "scheduler":
            continue
        library, name = named
        kind = getattr(importlib.import_module(library), name)
        if part.startswith("tokenizer"):
            _write_tokenizer(kind, folder / part)
        elif dtype is None:
            save_file({"none": torch.zeros(1)}, folder / part / f"{_stem(kind)}.safetensors", {"format": "pt"})
        else:
            write_weights(kind, folder / part, dtype)
    return folder


def write_network(kind: Any, architecture: str, folder: Path, dtype: str = "bfloat16") -> Path:
    """As `write_model`, of a network that stands alone, such as an AutoencoderTiny; returns its folder."""
    shutil.copytree(ARCHITECTURES / architecture, folder, dirs_exist_ok=True)
    write_weights(kind, folder, dtype)
    return folder


def write_weights(kind: Any, folder: Path, dtype: str) -> None:
    """Random weights of a class of diffusers or transformers, by the config.json in its folder, beside it in shards."""
    with torch.device("meta"):
        if hasattr(kind, "load_config"):  # of diffusers
            network: nn.Module = kind.from_config(kind.load_config(folder))
        else:
            network = kind(kind.config_class.from_pretrained(folder))
    stem = _stem(kind)
    shards = [f"{stem}-{number:05}.safetensors" for number, _ in enumerate(_shards(network, dtype))]
    weight_map: dict[str, str] = {}
    for name, names in zip(shards, _shards(network, dtype), strict=True):
        state = network.state_dict()
        save_file(
            {key: _random(key, state[key], getattr(torch, dtype)) for key in names}, folder / name, {"format": "pt"}
        )
        weight_map |= dict.fromkeys(names, name)
    whole = folder / f"{stem}.safetensors"
    if len(shards) == 1:
        (folder / shards[0]).rename(whole)
    else:
        index = {"metadata": {}, "weight_map": weight_map}
        whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index), encoding="utf-8")


def _stem(kind: Any) -> str:
    """What the files of its weights are called."""
    return "diffusion_pytorch_model" if hasattr(kind, "load_config") else "model"


def _shards(network: nn.Module, dtype: str) -> Iterator[list[str]]:
    """Names of weights that go into a file together."""
    size, names, width = 0, [], getattr(torch, dtype).itemsize
    for name, weight in network.state_dict().items():
        size, names = size + weight.numel() * width, [*names, name]
        if size >= SHARD_BYTES:
            yield names
            size, names = 0, []
    if names:
        yield names


def _random(name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights that leave the size of activations about as it is: normalising layers do nothing, biases are zero."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if like.ndim < 2:
        one = name.endswith(("weight", "running_var"))
        return torch.full(like.shape, float(one), dtype=dtype)
    drawn = torch.randn(DRAWN, generator=torch.Generator().manual_seed(0)) / math.sqrt(like.numel() / like.shape[0])
    drawn = drawn.roll(zlib.crc32(name.encode()))  # weights of one shape are not the same
    copies = math.ceil(like.numel() / DRAWN)
    return drawn.to(dtype).repeat(copies)[: like.numel()].reshape(like.shape)


def _write_tokenizer(kind: Any, folder: Path) -> None:
    """The bundled model's for CLIP, at the encoder's own length; for others one of words, with a template for chats."""
    if kind.__name__ == "CLIPTokenizer":
        shutil.copytree(Path(local_source(BUNDLED)) / "tokenizer", folder, dirs_exist_ok=True)
        encoder = folder.with_name(folder.name.replace("tokenizer", "text_encoder")) / "config.json"
        length = json.loads(encoder.read_text(encoding="utf-8"))["max_position_embeddings"]
        config = folder / "tokenizer_config.json"
        settings = json.loads(config.read_text(encoding="utf-8")) | {"model_max_length": length}
        config.write_text(json.dumps(settings), encoding="utf-8")
        return
    words = {word: i for i, word in enumerate(WORDS.split())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT, **names).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("architecture", help="a name in benchmarks/architectures, or another folder of configurations")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    given = parser.parse_args()
    print(write_model(given.architecture, given.folder, given.dtype))


if __name__ == "__main__":
    main()
