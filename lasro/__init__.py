"""LaSRO: reward fine-tuning for few-step diffusion models with rewards that cannot be differentiated.

The public names are imported when they are first used: `import lasro` takes milliseconds and needs no torch.
docs/python.md shows them in a training loop.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lasro.config import ModelSettings, RunSettings, SurrogateSettings, load_config
    from lasro.functional.reward_totals import RewardObjective
    from lasro.methods.registry import create_trainer
    from lasro.models.registry import load_model
    from lasro.models.surrogate import SurrogateReward as Surrogate
    from lasro.reward_function import RejectedItem, reward
    from lasro.training.generator_trainer import GeneratorTrainer
    from lasro.training.prompts import read_prompts
    from lasro.training.replay_buffer import ReplayBuffer, ReplayGroup
    from lasro.training.sampling import sample_groups, sample_latents
    from lasro.training.score_source import LocalSurrogate
    from lasro.training.surrogate_trainer import SurrogateTrainer

    __version__: str

__all__ = [
    "GeneratorTrainer",
    "LocalSurrogate",
    "ModelSettings",
    "RejectedItem",
    "ReplayBuffer",
    "ReplayGroup",
    "RewardObjective",
    "RunSettings",
    "Surrogate",
    "SurrogateSettings",
    "SurrogateTrainer",
    "__version__",
    "create_trainer",
    "load_config",
    "load_model",
    "read_prompts",
    "reward",
    "sample_groups",
    "sample_latents",
]

# Where each name is defined, for when it is first used; a test compares this with the two lists above.
_DEFINED_IN = {
    "GeneratorTrainer": "lasro.training.generator_trainer",
    "LocalSurrogate": "lasro.training.score_source",
    "ModelSettings": "lasro.config",
    "RejectedItem": "lasro.reward_function",
    "ReplayBuffer": "lasro.training.replay_buffer",
    "ReplayGroup": "lasro.training.replay_buffer",
    "RewardObjective": "lasro.functional.reward_totals",
    "RunSettings": "lasro.config",
    "Surrogate": "lasro.models.surrogate:SurrogateReward",
    "SurrogateSettings": "lasro.config",
    "SurrogateTrainer": "lasro.training.surrogate_trainer",
    "create_trainer": "lasro.methods.registry",
    "load_config": "lasro.config",
    "load_model": "lasro.models.registry",
    "read_prompts": "lasro.training.prompts",
    "reward": "lasro.reward_function",
    "sample_groups": "lasro.training.sampling",
    "sample_latents": "lasro.training.sampling",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _installed_version()
    elif name in _DEFINED_IN:
        module, _, own_name = _DEFINED_IN[name].partition(":")
        value = getattr(import_module(module), own_name or name)
    else:
        raise AttributeError(f"module 'lasro' has no attribute {name!r}; expected one of {', '.join(__all__)}")
    globals()[name] = value  # the next use does not come here
    return value


def _installed_version() -> str:
    """The version of the installed package; `unknown` where the sources are used without installing them."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lasro")
    except PackageNotFoundError:
        return "unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
