"""`model.shard`: the frozen network of a run in pieces at its processes, and what that asks of the settings."""

from __future__ import annotations

import torch

from lasro.config import RunSettings
from lasro.errors import ConfigError
from lasro.methods.registry import method_of
from lasro.training.forward_turns import ForwardTurns
from lasro.training.generator_trainer import GeneratorTrainer
from lasro_client.run.round_record import Stage


def check_shard(config: RunSettings, stage: Stage, count: int) -> None:
    """Raises ConfigError for settings with which the network cannot be shared out among `count` processes."""
    if not config.model.shard:
        return
    train = config.train
    if stage == "pretrain":
        raise ConfigError("model.shard: got true in stage 1, which has no use for it; set it to false there")
    if count == 1:
        raise ConfigError(
            "model.shard: got true with one process; start several by accelerate launch, or set it to false"
        )
    if config.model.quantization is not None:
        raise ConfigError("model.shard: got true together with model.quantization; leave one of them out")
    if config.model.compile:
        raise ConfigError("model.shard: got true together with model.compile; set one of them to false")
    if method_of(config).needs_surrogate and train.mode != "gradient":
        raise ConfigError(
            f'train.mode: got {train.mode} with model.shard, expected "gradient": weights need a whole base'
        )
    if (teacher := getattr(config.method, "teacher", None)) is not None:
        raise ConfigError(f"method.teacher: got {teacher} with model.shard; leave it out: a teacher is held whole")
    if train.batch_size % (count * train.two_step_every):
        raise ConfigError(
            f"train.batch_size: got {train.batch_size}, expected a multiple of {count * train.two_step_every}, the "
            "processes times train.two_step_every: with model.shard all make the same passes"
        )
    if method_of(config).learns_from_rewards and train.prompts_per_round % count:
        raise ConfigError(
            f"train.prompts_per_round: got {train.prompts_per_round}, expected a multiple of {count}, the processes, "
            f"for method.type {config.method.type}: with model.shard all make the same passes"
        )


def shard_generator(trainer: GeneratorTrainer, embedded: str) -> None:
    """Share the generator's frozen network out among the trainer's peers; `embedded`: a prompt that is embedded."""
    model, peers = trainer.model, trainer.peers
    latents_BCHW = torch.zeros(1, *model.latent_shape, device=model.device)
    step, conditioning = model.steps(1)[0], model.embed([embedded])

    @torch.no_grad()
    def fill_in() -> None:
        model.predict_clean(latents_BCHW, step, conditioning)

    peers.turns = ForwardTurns(model.shard(), fill_in, peers)
