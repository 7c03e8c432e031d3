"""The generator: which model, where and how it computes, and what of it is trained."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lasro.config.base import BUNDLED, Autocast, Device, Dtype, ModelSource, Positive, Settings


class ModelSettings(Settings):
    """The two-step generator."""

    path: ModelSource = BUNDLED
    """`bundled`, the diffusers folder of a consistency model, or a hub id."""
    revision: str | None = None
    """Commit of a hub id; absent: the newest."""
    unet: ModelSource | None = None
    """Folder or hub id of a distilled UNet that replaces the pipeline's own, as LCM-SSD-1B comes; absent: none."""
    device: Device = "auto"
    """Where to run; `auto` takes an accelerator when there is one."""
    dtype: Dtype = "float32"
    """Of the weights of frozen parts; what is trained stays in float32."""
    autocast: Autocast = "none"
    """Dtype of the arithmetic in sampling and training; `auto` takes bfloat16 where the device computes in it."""
    guidance: Annotated[float, Field(ge=0, le=50)] = 4.0
    """Guidance scale w, embedded in the UNet's time embedding."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""


class LoraSettings(Settings):
    """What of the generator's UNet is trained."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """LoRA rank."""
    alpha: Positive = 16.0
    """LoRA alpha; the update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Endings of module names that get an adapter; empty: those of the model's family."""
