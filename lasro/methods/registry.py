"""Which class makes the updates of a run: by `method.type`.

A new method is a line here, its module, and its settings in `lasro.config.method`.
"""

from __future__ import annotations

import importlib

from lasro.config import RunSettings
from lasro.methods.base import Method
from lasro.models.base import GeneratorModel
from lasro.training.distributed import DistributedContext
from lasro.training.generator_trainer import GeneratorTrainer

METHODS = {
    "lasro": "lasro.methods.surrogate_ascent:SurrogateAscent",
    "true-gradient": "lasro.methods.true_gradient:TrueGradient",
    "rlcm": "lasro.methods.rlcm:Rlcm",
    "ddpo": "lasro.methods.rlcm:Ddpo",
    "rebel": "lasro.methods.rlcm:Rebel",
    "pso-online": "lasro.methods.pso_online:PsoOnline",
    "pso-offline": "lasro.methods.offline_pairs:PsoOffline",
    "diffusion-dpo": "lasro.methods.offline_pairs:DiffusionDpo",
    "gors": "lasro.methods.gors:Gors",
    "reward-guided-lcd": "lasro.methods.reward_guided_lcd:RewardGuidedLcd",
    "noise-tilting": "lasro.methods.noise_tilting:NoiseTilting",
}


def method_of(config: RunSettings) -> type[Method]:
    """The class that `method.type` names; imported here, since methods import torch."""
    module, _, name = METHODS[config.method.type].partition(":")
    return getattr(importlib.import_module(module), name)


def create_trainer(
    config: RunSettings, model: GeneratorModel, peers: DistributedContext | None = None
) -> GeneratorTrainer:
    """The generator's trainer of a run, with its method and a fresh adapter; raises ConfigError or ModelError."""
    method = method_of(config).create(config, model)
    return GeneratorTrainer(model, method, config.lora, config.train, config.seed, peers)
