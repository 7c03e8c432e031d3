"""A run's prompts, embedded before its rounds.

Then neither its client nor a trainer on its machine needs text encoders: the trainer reads the embeddings from the
cache folder, where the client keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence

from lasro.config import RunSettings
from lasro.models.base import GeneratorModel
from lasro.training.distributed import DistributedContext
from lasro.training.prompts import Prompt
from lasro_client.run.run_prompts import RunPrompts

FEW = 256
"""Training prompts that are embedded in any case."""
EMPTY = ""
"""What a trainer embeds to check that it works, and a distillation loss embeds with each prompt."""


def embed_for_stage1(
    model: GeneratorModel, prompts: Sequence[Prompt], config: RunSettings, peers: DistributedContext
) -> None:
    """Embed what stage 1 will draw; raises PromptTooLongError and ModelError."""
    draws = config.pretrain.rounds * (config.pretrain.prompts_per_round + config.train.batch_size)
    _embed(model, [EMPTY, *_drawn([prompt.text for prompt in prompts], draws)], peers)


def embed_for_stage2(
    model: GeneratorModel, prompts: RunPrompts, config: RunSettings, peers: DistributedContext
) -> None:
    """Embed what stage 2 will draw and evaluate; raises PromptTooLongError and ModelError."""
    train, evaluation = config.train, config.evaluation
    measured = prompts.held_out.texts[: evaluation.prompts]
    if prompts.drift is not None:
        measured += prompts.drift.texts[: evaluation.drift_prompts]
    draws = train.max_rounds * (train.prompts_per_round + train.generator_steps * train.batch_size)
    _embed(model, [EMPTY, *measured, *_drawn(prompts.train.texts, draws)], peers)


def _drawn(texts: list[str], draws: int) -> list[str]:
    """All of them; none where there are more than is drawn: each is then left until it is."""
    return texts if len(texts) <= max(FEW, draws) else []


def _embed(model: GeneratorModel, texts: Sequence[str], peers: DistributedContext) -> None:
    """On the main process first, so that the other processes find them on disk."""
    peers.on_main_and_broadcast(lambda: model.embed_ahead(texts), None)
    if not peers.is_main:
        model.embed_ahead(texts)
