"""Turn checkpoints that exist in pickle form only into safetensors, once and by hand.

    hf download xswu/HPSv2 HPS_v2.1_compressed.pt --revision 697403c78157020a1ae59d23f111aa58ced35b0a --local-dir .
    hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K --revision 1c2b8495b28150b8a4922ee1c8edee224c284c0c \
        --include '*.json' --include '*.txt' --local-dir vit-h
    python -m lasro_rewards.convert hps-v2 HPS_v2.1_compressed.pt hps-v2 --base vit-h

    hf download zai-org/ImageReward ImageReward.pt --revision 5736be03b2652728fb87788c9797b0570450ab72 --local-dir .
    hf download Salesforce/blip-vqa-base --revision 787b3d35d57e49572baabd22884b3d5a05acf072 \
        --include '*.json' --include '*.txt' --local-dir blip
    python -m lasro_rewards.convert image-reward ImageReward.pt image-reward --base blip

    python -m lasro_rewards.convert aesthetic sac+logos+ava1-l14-linearMSE.pth aesthetic.safetensors

It is the one place that reads a pickle file, with torch's `weights_only`, which builds tensors and runs no code.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lasro.errors import LasroError, ModelError
from lasro_rewards.image_reward import build
from lasro_rewards.weights import quiet_transformers

State = dict[str, Tensor]
EXTRA = "clip"

# Regular expressions from upstream's names to those of transformers, applied in order.
OPEN_CLIP_NAMES = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
)
BLIP_NAMES = (
    (r"^blip\.visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.", "vision_model.encoder.layers."),
    (r"^blip\.text_encoder\.", "text_encoder."),
    (r"^mlp\.layers\.", "head."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
)
VIT_LARGE = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6,
}  # fmt: skip
BERT_BASE = {"vocab_size": 30524, "encoder_hidden_size": 1024, "num_attention_heads": 12, "is_decoder": True}


def renamed(state: State, names: Sequence[tuple[str, str]]) -> State:
    """The tensors under the names that the patterns make of theirs."""

    def new_name(name: str) -> str:
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        return name

    return {new_name(name): tensor for name, tensor in state.items()}


def from_open_clip(state: State) -> State:
    """An open_clip checkpoint as CLIPModel's: projections transposed, one attention matrix split in three."""
    result: State = {}
    for name, tensor in renamed(state, OPEN_CLIP_NAMES).items():
        if name.endswith(("visual_projection.weight", "text_projection.weight")):
            result[name] = tensor.T
        elif match := re.fullmatch(r"(.*\.self_attn\.)in_proj_(weight|bias)", name):
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                result[f"{match[1]}{part}_proj.{match[2]}"] = rows
        else:
            result[name] = tensor
    return result


def convert_hps_v2(checkpoint: Path, folder: Path, base: Path) -> None:
    """Write a CLIPModel folder; `base` gives configuration and tokenizer. Raises ModelError."""
    transformers = quiet_transformers(EXTRA)
    model = transformers.CLIPModel(transformers.CLIPConfig.from_pretrained(base, local_files_only=True))
    _fill(model, from_open_clip(_read(checkpoint)), checkpoint)
    model.save_pretrained(folder)
    transformers.CLIPTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(folder)


def convert_image_reward(checkpoint: Path, folder: Path, base: Path) -> None:
    """Write a folder for `image_reward.py`; `base` gives BLIP's tokenizer. Raises ModelError."""
    transformers = quiet_transformers(EXTRA)
    config = transformers.BlipConfig(vision_config=VIT_LARGE, text_config=BERT_BASE)
    # Heads of BLIP's pre-training, and positions that transformers counts for itself, are not part of the reward.
    used = {
        name: tensor
        for name, tensor in _read(checkpoint).items()
        if name.startswith(("blip.visual_encoder.", "blip.text_encoder.", "mlp.")) and "position_ids" not in name
    }
    model = build(config)
    _fill(model, renamed(used, BLIP_NAMES), checkpoint)
    config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors")
    transformers.BertTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(folder)


def convert_aesthetic(checkpoint: Path, file: Path, base: Path) -> None:
    """Write the head's tensors as they are; `base` is not looked at. Raises ModelError."""
    save_file({name: tensor.float().contiguous() for name, tensor in _read(checkpoint).items()}, file)


def _read(checkpoint: Path) -> State:
    try:
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"{checkpoint}: no checkpoint of plain tensors ({' '.join(str(error).split()):.200})"
        ) from error
    return loaded.get("state_dict", loaded)


def _fill(model: torch.nn.Module, state: State, checkpoint: Path) -> None:
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except RuntimeError as error:
        raise ModelError(f"{checkpoint}: {' '.join(str(error).split()):.300}; is it that model?") from error


CONVERTERS: dict[str, Callable[[Path, Path, Path], None]] = {
    "hps-v2": convert_hps_v2,
    "image-reward": convert_image_reward,
    "aesthetic": convert_aesthetic,
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("lasro_rewards.convert", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", choices=CONVERTERS)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="folder to write; for aesthetic a .safetensors file")
    parser.add_argument("--base", type=Path, help="folder with configuration and tokenizer; not for aesthetic")
    given = parser.parse_args(arguments)
    if given.base is None and given.model != "aesthetic":
        parser.error(f"--base is needed for {given.model}")
    try:
        CONVERTERS[given.model](given.checkpoint, given.out, given.base or Path())
    except LasroError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
