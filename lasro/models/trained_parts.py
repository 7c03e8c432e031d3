"""What a surrogate trains of a network that it shares with the frozen base: float32 copies of parts, or adapters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from lasro.models.shared_view import trainable_copy


def copy_to_train(network: Any, parts: Collection[str]) -> None:
    """Replace the shared weights of these parts by trainable float32 copies; a part may be absent."""
    for name in parts:
        if getattr(network, name) is None:
            continue
        setattr(network, name, trainable_copy(getattr(network, name)))


def adapt_to_train(network: Any, parts: Collection[str], rank: int) -> None:
    """Freeze the shared weights; put trainable float32 LoRA adapters on every linear and convolution of these parts.

    A convolution in groups has none: its factors would be in groups too.
    """
    targets = [name for name, module in network.named_modules() if name.split(".")[0] in parts and _takes_lora(module)]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    inject_adapter_in_model(config, network, adapter_name="surrogate")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()


def _takes_lora(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
