"""The generator: which model, where and how it computes, and what of it is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from lasro.config.base import BUNDLED, Autocast, Device, Dtype, ModelSource, Pixels, Positive, Settings, Timesteps

UNET_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
"""Endings of the names of a UNet's modules that get an adapter by default."""


class ModelSettings(Settings):
    """The few-step generator."""

    path: ModelSource = BUNDLED
    """`bundled`, the diffusers folder of a consistency model, a hub id, or a single `.safetensors` file."""
    revision: str | None = None
    """Commit of a hub id; absent: the newest."""
    unet: ModelSource | None = None
    """Folder, file or hub id of a distilled UNet in place of the pipeline's own, as LCM-SSD-1B comes; absent: none."""
    config: ModelSource | None = None
    """Diffusers folder or hub id whose configuration a single file takes; absent: the hub's for what it looks like."""
    base_adapter: ModelSource | None = None
    """File, folder or hub id (`owner/name`, or `owner/name/file.safetensors`) of a LoRA that makes few steps of a stock
    checkpoint, as LCM-LoRA does: fused into the frozen weights, and in no adapter that is written; absent: none."""
    scheduler: Literal["own", "lcm", "euler", "euler_ancestral", "tcd", "ddim"] = "own"
    """How it is sampled: as the folder says, or by this scheduler made from the folder's configuration, with trailing
    timesteps where it has a choice. Where `unet` is given, `own` means `lcm`."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """What the UNet predicts: `sample` for the one-step UNet of SDXL-Lightning; absent: as the scheduler says."""
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    """How stochastic the steps of a TCDScheduler are, 0 to 1, as `eta` of the stock pipeline; absent: 0 as there."""
    device: Device = "auto"
    """Where to run; `auto` takes an accelerator when there is one."""
    dtype: Dtype = "float32"
    """Of the weights of frozen parts; what is trained stays in float32."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Of the linear layers of the frozen UNet or transformer: 8 bits a weight, or 4, by torchao (`pip install
    'lasro[quantize]'`); absent: they are in `dtype` like the rest."""
    autocast: Autocast = "none"
    """Dtype of the arithmetic in sampling and training; `auto` takes bfloat16 where the device computes in it."""
    guidance: Annotated[float, Field(ge=0, le=50)] = 4.0
    """Guidance scale w, embedded in the network's time embedding; at most 1 where it has no such embedding."""
    height: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Of images, in pixels; absent: the size that the model was made for."""
    width: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Of images, in pixels; absent: the size that the model was made for."""
    original_size: Pixels | None = None
    """Height and width in pixels before scaling, as an SDXL-class UNet takes them; absent: as drawn."""
    target_size: Pixels | None = None
    """Height and width in pixels that an SDXL-class UNet is told an image was wanted in; absent: as drawn."""
    crops_top_left: Pixels | None = None
    """Top and left in pixels where an SDXL-class UNet is told an image was cropped; absent: 0, 0."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, of generator and surrogate: less memory, more time."""
    compile: bool = False
    """Compile the network's repeated blocks by `torch.compile`: the same results but for rounding, sooner; the first
    steps of a process wait for the compiler. What it makes is kept in the cache folder for the next process."""
    shard: bool = False
    """Each of several processes holds a piece of the frozen network, by FSDP2: for one that a single GPU does not hold.
    In stage 2, with train.mode = "gradient"; the surrogate trainer holds its own base whole."""
    max_batch: Annotated[int, Field(ge=1)] | None = None
    """Most images drawn together in an evaluation, and decoded together anywhere; absent: as many as usually fit."""
    vae_slicing: bool = False
    """Send images through the VAE one by one, by diffusers' own switch: less memory, the same pixels."""
    vae_tile: Annotated[int, Field(ge=64, le=8192)] | None = None
    """Side in pixels of the tiles in which larger images go through the VAE, by diffusers' own switch: much less memory
    at 1024 pixels and more, but seams are blended, so pixels differ a little; absent: whole."""
    tiny_vae: ModelSource | None = None
    """Folder or hub id of an AutoencoderTiny that decodes what a run has scored in its rounds; evaluations, exports and
    pictures take the model's own VAE. The change of the reward is told when the run starts; absent: none."""
    timesteps: Annotated[Timesteps | None, Field(exclude=True)] = None
    """Of the steps, 1 to 8; absent: the scheduler's own. A run says those of its steps as `train.timesteps`, and only
    its client samples: so it is in no dump, and the surrogate trainer never hears of it."""


class BackboneModelSettings(ModelSettings):
    """A model of which only the network is used, for a surrogate to stand on: nothing is drawn with it."""


class LoraSettings(Settings):
    """What of the generator's UNet or transformer is trained."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """LoRA rank."""
    alpha: Positive = 16.0
    """LoRA alpha; the update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Endings of module names that get an adapter; empty: those of the model's family."""

    @field_validator("targets")
    @classmethod
    def _default_of_0_1(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        """0.1 wrote its default out into config.json: a run that it began is resumed all the same."""
        return () if targets == UNET_TARGETS else targets
