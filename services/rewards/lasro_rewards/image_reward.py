"""ImageReward (Xu et al. 2023, arXiv 2304.05977): BLIP with a reward head trained on human rankings. Extra: `blip`.

As ImageReward/ImageReward.py of github.com/THUDM/ImageReward at 0f5fa3e2: the prompt, padded to 35 tokens, attends to
the image's patches; its first token's feature goes through five linear layers without activation; then
`(x - 0.16717...) / 1.03333...`.

Upstream publishes the checkpoint in pickle form only. Convert it once, see `convert.py`, and set
`LASRO_IMAGE_REWARD_MODEL` to the folder.

Code: transformers (Apache-2.0). Weights: ImageReward v1.0 (Apache-2.0) on BLIP (BSD-3-Clause).

Shape legend: B batch, D features, L tokens.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError

from lasro.errors import ModelError
from lasro.reward_sdk import reward
from lasro_rewards.packages import needed
from lasro_rewards.pixels import cropped
from lasro_rewards.weights import device, load_tokenizer, located, missing, quiet_transformers

EXTRA = "blip"
SETTING = "image_reward_model"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
MAX_TOKENS, MAX_BATCH = 35, 16
HEAD_WIDTHS = (1024, 128, 64, 16, 1)
HEAD_PLACES = (0, 2, 4, 6, 7)  # of the linear layers in upstream's Sequential; dropout stands between them


@reward
def image_reward(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
    """Standardised preference, usually -2 to 2, higher is better."""
    rewards: list[float] = []
    for start in range(0, len(images), MAX_BATCH):
        part = slice(start, start + MAX_BATCH)
        rewards += _rewards(images[part], prompts[part])
    return rewards


def build(config: Any) -> Any:
    """The model without weights, for a BlipConfig; its parts are named as in converted files."""
    torch = needed("torch", EXTRA)
    blip = quiet_transformers(EXTRA)
    widths = (config.text_config.hidden_size, *HEAD_WIDTHS)
    head = {
        str(place): torch.nn.Linear(width, next_width)
        for place, width, next_width in zip(HEAD_PLACES, widths, HEAD_WIDTHS, strict=False)
    }
    return torch.nn.ModuleDict(
        {
            "vision_model": blip.BlipVisionModel(config.vision_config),
            "text_encoder": blip.BlipTextModel(config.text_config, add_pooling_layer=False),
            "head": torch.nn.ModuleDict(head),
        }
    )


def _rewards(images: list[Image.Image], prompts: list[str]) -> list[float]:
    torch = needed("torch", EXTRA)
    model, tokenizer, size_px = _model()
    place = device(EXTRA)
    tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    with torch.inference_mode():
        patches = model["vision_model"](torch.from_numpy(cropped(images, size_px)).to(place)).last_hidden_state
        features_BLD = model["text_encoder"](
            input_ids=tokens["input_ids"].to(place),
            attention_mask=tokens["attention_mask"].to(place),
            encoder_hidden_states=patches,
        ).last_hidden_state
        features_BD = features_BLD[:, 0]
        for layer in model["head"].values():
            features_BD = layer(features_BD)
    return ((features_BD[:, 0].double() - MEAN) / STD).tolist()


@cache
def _model() -> tuple[Any, Any, int]:
    folder = Path(located(SETTING)[0])
    transformers = quiet_transformers(EXTRA)
    load_file = needed("safetensors.torch", EXTRA).load_file
    try:
        config = transformers.BlipConfig.from_pretrained(folder, local_files_only=True)
        tensors = load_file(folder / "model.safetensors")
        model = build(config)
        model.load_state_dict(tensors)
    except (OSError, SafetensorError) as error:
        raise ModelError(missing(SETTING)) from error
    except RuntimeError as error:  # what load_state_dict raises for tensors that are missing, unknown or misshapen
        detail = " ".join(str(error).split())
        raise ModelError(f"{folder}: {detail:.300}; convert ImageReward.pt again") from error
    model = model.eval().requires_grad_(False).to(device(EXTRA))
    return model, load_tokenizer("BertTokenizer", SETTING, EXTRA), config.vision_config.image_size
