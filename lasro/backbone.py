"""The two-step generator and the trunk of the surrogate: the only module that knows diffusers and peft inside.

Modules that share the frozen weights of one UNet (`shared_view`) carry their own adapters, so nothing ever has to
switch the active adapter: a recomputed checkpoint block cannot run with the wrong one.

Shape legend: B batch, C latent channels, H, W latent height and width, T tokens, D embedding, P pooled.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lasro.config import LoraSettings, ModelSettings
from lasro.errors import ModelError, PromptTooLongError, WireError
from lasro.two_step import boundary_scalings, clean_from_output, consistency, guidance_embedding

BUNDLED = "assets/tiny-sdxl-lcm"
ADAPTER_FILE = "pytorch_lora_weights.safetensors"
GENERATOR = "generator"
EMBEDDING_CACHE = 2048
DECODE_BATCH = 16
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
M = TypeVar("M", bound=nn.Module)


class Conditioning(NamedTuple):
    """A prompt's embeddings for B samples; no gradient."""

    embeds_BTD: Tensor
    pooled_BP: Tensor

    def repeat_each(self, count: int) -> Conditioning:
        """Each row `count` times in a row."""
        return Conditioning(*(rows.repeat_interleave(count, 0) for rows in self))


def pick_device(wanted: str) -> torch.device:
    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Mixed precision of that name; "none" leaves arithmetic as it is."""
    return torch.autocast(device.type, dtype=AUTOCAST.get(dtype, torch.bfloat16), enabled=dtype != "none")


def shared_view(module: M) -> M:
    """A copy of the module tree over the very same parameters and buffers: no memory, and adapters of its own."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, memo={id(tensor): tensor for tensor in tensors})


def quiet_libraries() -> None:
    """Keep loading bars and advice of diffusers and transformers out of our own output; errors stay."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()


def load_model(settings: ModelSettings) -> TwoStepModel:
    """Load an SDXL-class consistency model; raises ModelError saying what is missing or unsupported."""
    quiet_libraries()
    from diffusers import LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    path = str(files("lasro").joinpath(BUNDLED)) if settings.path == "bundled" else settings.path
    if path.startswith(("/", ".", "~")) and not Path(path, "model_index.json").is_file():
        raise ModelError(f"{path}: no model_index.json there; expected the folder of a StableDiffusionXLPipeline")
    dtype = getattr(torch, settings.dtype)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    try:
        if settings.unet is not None:
            options["unet"] = UNet2DConditionModel.from_pretrained(
                settings.unet, dtype=dtype, use_safetensors=True
            )
        pipeline = StableDiffusionXLPipeline.from_pretrained(
            path, revision=settings.revision, add_watermarker=False, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: cannot be loaded as a StableDiffusionXLPipeline ({error})") from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    return TwoStepModel(pipeline, settings)


class TwoStepModel:
    """An SDXL-class consistency model: prompts to embeddings, noise to clean latents, latents to images.

    `unet` may carry a trained adapter; `base` is the same UNet without one, over the same memory.
    """

    def __init__(self, pipeline: Any, settings: ModelSettings) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.device = pick_device(settings.device)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            part.requires_grad_(False).eval()
        pipeline.to(self.device)
        if self.device.type == "cpu":
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        if pipeline.vae.config.force_upcast and settings.dtype == "float16":
            pipeline.vae.to(torch.float32)
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.base = shared_view(self.unet)
        if settings.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.alphas_cumprod_T: Tensor = pipeline.scheduler.alphas_cumprod.to(self.device)
        self.guidance_dim: int | None = self.unet.config.time_cond_proj_dim
        if self.guidance_dim is None and settings.guidance > 1:
            raise ModelError(
                f"guidance: got {settings.guidance}, but this UNet has no guidance embedding; set it to 1"
            )
        size = self.unet.config.sample_size
        self.latent_shape: tuple[int, int, int] = (self.unet.config.in_channels, size, size)
        self._embeddings: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    def embed(self, prompts: list[str]) -> Conditioning:
        """Embeddings of the prompts, cached; raises PromptTooLongError rather than cutting a prompt short."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]
        if missing:
            self._check_length(missing)
            with torch.no_grad():
                embeds, _, pooled, _ = self.pipeline.encode_prompt(
                    missing, device=self.device, do_classifier_free_guidance=False
                )
            self._embeddings.update(zip(missing, zip(embeds, pooled, strict=True), strict=True))
        rows = [self._embeddings[prompt] for prompt in prompts]
        for prompt in prompts:
            self._embeddings.move_to_end(prompt)
        while len(self._embeddings) > EMBEDDING_CACHE:
            self._embeddings.popitem(last=False)
        return Conditioning(
            torch.stack([embeds for embeds, _ in rows]), torch.stack([pooled for _, pooled in rows])
        )

    def _check_length(self, prompts: list[str]) -> None:
        for tokenizer in (self.pipeline.tokenizer, self.pipeline.tokenizer_2):
            for prompt, ids in zip(prompts, tokenizer(prompts, verbose=False).input_ids, strict=True):
                if len(ids) > tokenizer.model_max_length:
                    raise PromptTooLongError(
                        f"prompt {prompt[:60]!r}: got {len(ids)} tokens, expected at most "
                        f"{tokenizer.model_max_length}; shorten it"
                    )

    def unet_arguments(self, conditioning: Conditioning, guidance: float | None = None) -> dict[str, Any]:
        """Keyword arguments by which an SDXL UNet takes prompt, size and guidance."""
        embeds_BTD, pooled_BP = conditioning
        scale = self.pipeline.vae_scale_factor
        height, width = self.latent_shape[1] * scale, self.latent_shape[2] * scale
        time_ids = torch.tensor([height, width, 0, 0, height, width], device=self.device, dtype=embeds_BTD.dtype)
        arguments: dict[str, Any] = {
            "encoder_hidden_states": embeds_BTD,
            "added_cond_kwargs": {"text_embeds": pooled_BP, "time_ids": time_ids.expand(len(pooled_BP), 6)},
        }
        if self.guidance_dim is not None:
            w = self.settings.guidance if guidance is None else guidance
            w_B = torch.full((len(pooled_BP),), w, device=self.device, dtype=torch.float32)
            arguments["timestep_cond"] = guidance_embedding(w_B, self.guidance_dim).to(embeds_BTD.dtype)
        return arguments

    def predict_clean(
        self,
        x_t_BCHW: Tensor,
        timestep: int | Tensor,
        conditioning: Conditioning,
        guidance: float | None = None,
        base: bool = False,
    ) -> Tensor:
        """f_theta(x_t, t, c), float32: the clean latents; of the frozen base where `base` is set.

        `timestep` is one for all, or int64 [B].
        """
        t = torch.as_tensor(timestep, device=self.device)
        config = self.pipeline.scheduler.config
        with autocast(self.device, self.settings.autocast):
            output = (self.base if base else self.unet)(
                x_t_BCHW.to(conditioning.embeds_BTD.dtype), t, **self.unet_arguments(conditioning, guidance)
            ).sample
        column = t.reshape(-1, 1, 1, 1)
        z = clean_from_output(output.float(), x_t_BCHW, self.alphas_cumprod_T[column], config.prediction_type)
        return consistency(z, x_t_BCHW, *boundary_scalings(column.float(), config.timestep_scaling))

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor, mixed: bool = False) -> np.ndarray:
        """Images uint8 [B, H, W, 3]; with `mixed` in the settings' autocast dtype, else as the weights are."""
        images = []
        for part in latents_BCHW.split(DECODE_BATCH):
            part = (
                part.to(self.vae.dtype).contiguous(memory_format=torch.channels_last)
                / self.vae.config.scaling_factor
            )
            with autocast(self.device, self.settings.autocast if mixed else "none"):
                images.append(self.vae.decode(part).sample.float())
        unit = (torch.cat(images) / 2 + 0.5).clamp(0, 1)
        return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    @torch.no_grad()
    def encode(self, images_BHWC: np.ndarray) -> Tensor:
        """Latents float32 [B, C, H, W] of uint8 images of the model's own size: the posterior's mean."""
        side = self.latent_shape[1] * self.pipeline.vae_scale_factor
        if images_BHWC.shape[1:] != (side, side, 3):
            raise WireError(f"images: got {images_BHWC.shape[1:]}, expected ({side}, {side}, 3)")
        pixels = torch.from_numpy(images_BHWC).to(self.device, self.vae.dtype).permute(0, 3, 1, 2) / 127.5 - 1
        means = [self.vae.encode(part).latent_dist.mode() for part in pixels.split(DECODE_BATCH)]
        return torch.cat(means).float() * self.vae.config.scaling_factor


class UNetTrunk(nn.Module):
    """conv_in, down and mid blocks of a UNet with its embeddings: latents to the mid block's feature map.

    What `train_blocks` copies is the trunk's own and trainable; all else is shared with the frozen base.
    """

    trained_parts = ("conv_in", "down_blocks", "mid_block")

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        view = shared_view(unet)
        view.up_blocks = nn.ModuleList()
        view.conv_norm_out, view.conv_out = None, nn.Identity()
        self.unet = view
        self.out_channels: int = unet.config["block_out_channels"][-1]  # type: ignore[index]

    def train_blocks(self) -> None:
        """Replace shared weights of conv_in, down and mid blocks by trainable float32 copies."""
        for name in self.trained_parts:
            part = copy.deepcopy(getattr(self.unet, name)).float().requires_grad_(True)
            setattr(self.unet, name, part)

    def add_adapters(self, rank: int) -> None:
        """LoRA adapters, float32, on every linear and convolution of conv_in, down and mid blocks."""
        from peft import LoraConfig, inject_adapter_in_model

        targets = [
            name
            for name, module in self.unet.named_modules()
            if name.split(".")[0] in self.trained_parts and isinstance(module, nn.Linear | nn.Conv2d)
        ]
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
        inject_adapter_in_model(config, self.unet, adapter_name="surrogate")
        for name, parameter in self.unet.named_parameters():
            parameter.requires_grad_("lora_" in name)
            if "lora_" in name:
                parameter.data = parameter.data.float()

    def forward(self, x_t_BCHW: Tensor, timesteps_B: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Features [B, out_channels, H', W'] of the mid block, as UNet2DConditionModel.forward computes them."""
        unet: Any = self.unet
        embedding = unet.get_time_embed(sample=x_t_BCHW, timestep=timesteps_B)
        embedding = unet.time_embedding(embedding, arguments.get("timestep_cond"))
        states = arguments["encoder_hidden_states"]
        embedding = embedding + unet.get_aug_embed(
            emb=embedding, encoder_hidden_states=states, added_cond_kwargs=arguments["added_cond_kwargs"]
        )
        hidden = unet.conv_in(x_t_BCHW)
        for block in unet.down_blocks:
            if getattr(block, "has_cross_attention", False):
                hidden, _ = block(hidden_states=hidden, temb=embedding, encoder_hidden_states=states)
            else:
                hidden, _ = block(hidden_states=hidden, temb=embedding)
        return unet.mid_block(hidden, embedding, encoder_hidden_states=states)


def add_generator_lora(model: TwoStepModel, settings: LoraSettings, seed: int) -> list[nn.Parameter]:
    """Put a fresh trainable LoRA on `model.unet`; returns its parameters, float32, in a fixed order."""
    from peft import LoraConfig

    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(settings.targets))  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model.unet.add_adapter(config, adapter_name=GENERATOR)
        except ValueError as error:
            raise ModelError(f"lora.targets: got {list(settings.targets)}, none of which this UNet has") from error
    parameters = [p for name, p in model.unet.named_parameters() if "lora_" in name]
    for parameter in parameters:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return parameters


def save_adapter(model: TwoStepModel, folder: Path, settings: LoraSettings) -> Path:
    """Write the generator's LoRA so that stock diffusers loads it with `load_lora_weights`.

    alpha / rank is folded into the second factor, so no reader has to know it.
    """
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model.unet, adapter_name=GENERATOR)
    scale = settings.alpha / settings.rank
    folded = {name: (t * scale if "lora_B" in name else t).detach().cpu() for name, t in state.items()}
    StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers=convert_state_dict_to_diffusers(folded))
    return folder / ADAPTER_FILE


def load_adapter(model: TwoStepModel, folder: Path) -> None:
    """Load an adapter, ours or any that diffusers reads, onto `model.unet`; raises ModelError."""
    if not folder.exists():
        raise ModelError(f"{folder}: no such adapter; expected a folder with {ADAPTER_FILE}")
    try:
        model.pipeline.load_lora_weights(folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be loaded as a LoRA for this UNet ({error})") from error


@contextmanager
def parameters_set(parameters: list[nn.Parameter], values: list[Tensor]) -> Iterator[None]:
    """Give the parameters other values for a while, such as averaged ones."""
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
