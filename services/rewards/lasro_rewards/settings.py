"""Settings of the built-in rewards that hold a model, read from `LASRO_*` variables. Imports no torch.

Where weights come from is one string: a folder, or a hub id, either alone or as `ID@REVISION`. The defaults are hub
ids pinned to a commit, so that a score means the same tomorrow. Nothing is downloaded: a reward that fetched gigabytes
inside a scoring call would time out, so weights that are not there are an error that tells how to fetch them.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from lasro.errors import ConfigError
from lasro.validation import explain


class RewardModelSettings(BaseSettings):
    """Each field is the variable `LASRO_` + its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="LASRO_", frozen=True, use_attribute_docstrings=True)

    reward_threads: int = Field(2, ge=1, le=256)
    """CPU threads of a reward's model; several pools on the same cores slow each other down."""
    reward_device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of the rewards that use torch."""
    clip_model: str = "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"
    """For the CLIP score, the aesthetic score and the caption alignment."""
    pick_score_model: str = "yuvalkirstain/PickScore_v1@a4e4367c6dfa7288a00c550414478f865b875800"
    """CLIP ViT-H fine-tuned on Pick-a-Pic."""
    hps_v2_model: str = ""
    """Folder written by `python -m lasro_rewards.convert hps-v2`."""
    aesthetic_head: str = ""
    """Safetensors file written by `python -m lasro_rewards.convert aesthetic`."""
    blip_vqa_model: str = "Salesforce/blip-vqa-base@787b3d35d57e49572baabd22884b3d5a05acf072"
    """For attribute binding by questions."""
    image_reward_model: str = ""
    """Folder written by `python -m lasro_rewards.convert image-reward`."""
    caption_model: str = "Salesforce/blip-image-captioning-large@353689b859fcf0523410b1806dace5fb46ecdf41"
    """For the caption alignment."""


@cache
def settings() -> RewardModelSettings:
    """The process's settings, read once; raises ConfigError."""
    try:
        return RewardModelSettings()  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        raise ConfigError(f"LASRO_* variables: {explain(error)}") from error
