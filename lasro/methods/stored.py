"""Methods that learn from samples of any round so far, whichever policy made them.

A round's samples are drawn again, the generator's and the base's, and what `choose` wants of them is stored. The
regulariser and the drift budget go by fresh samples of the update's prompts, as in LaSRO.

Shape legend: B samples or pairs, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lasro.config.method import StoredSettings
from lasro.methods.regulariser import Regulariser, hold
from lasro.methods.rewarded import RewardedMethod
from lasro.methods.sample_store import SampleStore, Stored
from lasro.num_steps import NumSteps
from lasro.training.distributed import check_enough
from lasro.training.generator_trainer import GeneratorTrainer, StepStatistics
from lasro.training.process_codec import CpuTensor
from lasro.training.prompts import Prompt
from lasro.training.rewarded_group import RewardedGroup, mean_total
from lasro.training.sampling import sample_latents
from lasro.training.score_source import ScoreSource

S = TypeVar("S", bound=StoredSettings)


class StoredMethod(RewardedMethod[S], Generic[S]):
    """An update draws `train.batch_size` entries of the store. Every process has all of it."""

    scale = 1.0
    """How many times larger the gradient of `loss` is than that of a squared distance of latents."""

    def __init__(self, settings: S, regulariser: Regulariser) -> None:
        super().__init__(settings, regulariser)
        self.store = SampleStore(settings.stored_samples)
        self._means: dict[NumSteps, float | None] = {}

    def observe(self, trainer: GeneratorTrainer, groups: Sequence[RewardedGroup]) -> bool:
        check_enough("train.prompts_per_round", len(groups), trainer.peers)
        self._means = {n: mean_total(groups, n) for n in trainer.settings.steps}
        for group, latents in zip(groups, _drawn_again(trainer, groups), strict=True):
            self.choose(group, latents)
        return len(self.store) > 0

    @abstractmethod
    def choose(self, group: RewardedGroup, latents: Sequence[Tensor]) -> None:
        """Store what is to be learned from of a group: `latents` [N, C, H, W] belong to `totals_of(group)`."""

    @abstractmethod
    def loss(self, trainer: GeneratorTrainer, stored: Stored, here: slice, draws: torch.Generator) -> Tensor:
        """The part of this process, which has the rows `here`, of the mean loss of all rows; a scalar. All processes
        draw the same."""

    def update(self, trainer: GeneratorTrainer, batch: Sequence[Prompt], source: ScoreSource | None) -> StepStatistics:
        draws, count = trainer.draws(), len(batch)
        steps = trainer.sample(batch, draws)
        L_reg = self.regulariser(trainer, steps, draws)
        L, held = hold(trainer, steps, L_reg, self.settings)  # c L_reg, c by the distance from the base
        loss = self.loss(trainer, self.store.draw(count, draws), trainer.peers.share(count), draws)
        mean_loss, regulariser = trainer.sum_over_processes([loss.item() + L.item(), L_reg.item()])
        grad_norm = trainer.apply(L + loss / self.scale)
        return StepStatistics(mean_loss, regulariser, self._means, grad_norm=grad_norm, **held._asdict())

    def state(self) -> dict[str, Any]:
        return self.store.state()

    def tensors(self) -> dict[str, Tensor]:
        return self.store.tensors()

    def load_state(self, state: dict[str, Any]) -> None:
        self.store.load_state(state)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.store.load_tensors(tensors)


def totals_of(group: RewardedGroup) -> list[Tensor]:
    """Of all samples: the generator's after one step and more, then the base's."""
    return [*group.own_totals.values(), *group.base_totals.values()]


@torch.no_grad()
def _drawn_again(trainer: GeneratorTrainer, groups: Sequence[RewardedGroup]) -> list[list[Tensor]]:
    """Latents of each group's samples, on the CPU, in the order of `totals_of`; each process draws a share."""

    def of(group: RewardedGroup) -> list[CpuTensor]:
        model, conditioning = trainer.model, trainer.model.embed([group.prompt.text])
        found = []
        for of_base, totals in ((False, group.own_totals), (True, group.base_totals)):
            if not totals:
                continue
            seeds = _num_seeds(group, totals)
            noises = [noise[: len(noise) // len(group.noises[0]) * seeds].to(model.device) for noise in group.noises]
            taken = sample_latents(model, noises, conditioning.repeat_each(seeds), of_base, list(totals))
            found += [z_BCHW.cpu() for z_BCHW in taken]
        return found

    here = trainer.peers.share(len(groups))
    shares = trainer.peers.all_gather(lambda: [of(group) for group in groups[here]], list[list[CpuTensor]])
    return [latents for share in shares for latents in share]


def _num_seeds(group: RewardedGroup, totals: Mapping[int, Tensor]) -> int:
    """First noises that samples with these totals are of: what takes more steps than one goes on D times from each."""
    num_steps, values = next(iter(totals.items()))
    return len(values) * len(group.noises[0]) // len(group.noises[min(num_steps, 2) - 1])
