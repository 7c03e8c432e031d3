"""Do the rewards of a run answer, and do they teach it anything? Waits for the one, and ends a run without the other.

    at the start, also of a resumed run                 every reward must answer
    after an evaluation in which one scored nothing     so must they, before it is taken again
    after a round in which no sample got a total        those that make the total must answer
    after health.max_unranked_rounds                    the run ends
    after the last round, if none gave a ranked pair    the run ends, before what was not trained is evaluated

A reward is waited for up to `services.reward_wait_s`, then the run ends with its own words as RewardError. The caller
keeps a checkpoint, from which the same command goes on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence

from lasro.config import RunSettings
from lasro.errors import BudgetError, RewardError
from lasro.images import png_bytes
from lasro.models.base import GeneratorModel
from lasro.num_steps import NumSteps
from lasro.training.distributed import DistributedContext
from lasro.training.prompts import Prompt
from lasro.wire import ScoredItem, Status
from lasro_client.evaluation.score_prompts import draw_in_steps, score_images
from lasro_client.run.folder import RunFolder
from lasro_client.run.observer import Observer
from lasro_client.run.progress import Progress
from lasro_client.run.round_record import RoundRecord
from lasro_client.run.unranked import why_unranked
from lasro_client.services.failures import Failure, describe, failures_of, remedies
from lasro_client.services.retry import with_retry
from lasro_client.services.reward_client import RewardClient

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0
STOP_CHECK_S = 0.2
RESUMABLE = "what is done is kept, and the same command goes on from there"
Probe = Callable[[Sequence[str]], Sequence[ScoredItem]]
"""Has one image scored by the named rewards, past the cache; one item."""


class RewardWatch:
    """Of one run. Of several processes the main one asks the rewards, and all of them end."""

    def __init__(
        self, config: RunSettings, probe: Probe, observer: Observer, peers: DistributedContext, first_round: int = 0
    ) -> None:
        """`first_round`: where the run begins or goes on; rounds before it do not end it again."""
        self._config, self._probe, self._observer, self.peers = config, probe, observer, peers
        self._first_round = first_round
        self._wait_s = config.services.reward_wait_s

    def wait(self, rewards: Sequence[str], stopped: Callable[[], bool] = lambda: False) -> None:
        """Return once all these rewards answer, or `stopped()`.

        Raises RewardError in the words of those that do not within `services.reward_wait_s`, or at once where the API
        may not call one.
        """
        self.peers.on_main_and_broadcast(lambda: self._wait_here(rewards, stopped), None)

    def after_round(self, record: RoundRecord, stopped: Callable[[], bool]) -> None:
        """Go on where the round taught something; where no sample got a total, once the rewards answer.

        Raises RewardError after too many rounds without a ranked pair, and as `wait`.
        """
        rounds = min(record.unranked_rounds, record.round + 1 - self._first_round)
        if rounds >= self._config.health.max_unranked_rounds:
            raise RewardError(
                f"{rounds} rounds in a row without a ranked pair (health.max_unranked_rounds): "
                f"{why_unranked(record)}; {RESUMABLE}"
            )
        if rounds and not record.rewards.scored_samples:
            self.wait(self._config.reward_objective.required_rewards, stopped)

    def after_rounds(self, progress: Progress, folder: RunFolder) -> None:
        """Go on to what follows the rounds of a run that was to have some.

        Raises BudgetError where none was done, and RewardError where none of them gave a ranked pair, unless the run
        was ended for that already.
        """
        if progress.round == 0:
            raise BudgetError(
                "no round fits into the budget, so that nothing was learned; raise budget.max_minutes or "
                "budget.max_reward_calls"
            )
        if progress.unranked == progress.round and progress.ended is None:
            self.peers.on_main_and_broadcast(lambda: self._nothing_learned(folder), None)

    def _nothing_learned(self, folder: RunFolder) -> None:
        last = folder.rounds()[-1]
        raise RewardError(
            f"none of the {last.round + 1} rounds gave a ranked pair, so that nothing was learned: "
            f"{why_unranked(last)}; then go on with more rounds ({last.stage}.rounds), or in another folder (--out)"
        )

    def _wait_here(self, rewards: Sequence[str], stopped: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._wait_s
        pause_s, heard, noted = FIRST_PAUSE_S, dict[str, Failure](), ""
        while failures := self._unanswered(rewards, deadline):
            # While a reward is left alone for its failures, its last words say more than that.
            heard = {name: heard.get(name, each) if _is_left_alone(each) else each for name, each in failures.items()}
            blocked = any(each.status == Status.BLOCKED for each in failures.values())
            left_s = deadline - time.monotonic()
            if blocked or left_s <= 0:
                raise RewardError(self._unreached(heard))
            if noted != (noted := describe(heard)):
                self._observer.note(f"{noted}; waiting up to {self._wait_s:g} s for it (services.reward_wait_s)")
            _pause(min(pause_s, left_s), stopped)
            if stopped():
                return
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        if heard:
            self._observer.note(f"reward {', '.join(heard)} answers; the run goes on")

    def _unanswered(self, rewards: Sequence[str], deadline: float) -> Mapping[str, Failure]:
        """The failures of those that do not answer. One that rejects this image does answer."""
        failures = failures_of(with_retry(lambda: self._probe(rewards), deadline), rewards)
        return {name: each for name, each in failures.items() if each.status != Status.REJECTED}

    def _unreached(self, failures: Mapping[str, Failure]) -> str:
        return (
            f"{describe(failures)} after {self._wait_s:g} s of waiting (services.reward_wait_s); "
            f"{remedies(failures)}; {RESUMABLE}"
        )


def probe_with(
    model: GeneratorModel, prompts: Sequence[Prompt], seed: int, client: RewardClient, num_steps: NumSteps = 2
) -> Probe:
    """Scores a sample of the base in so many steps, since a reward may need real ones, each time for the next of the
    prompts: a reward that fails for one of them only does answer."""
    turns = itertools.cycle(prompts)

    def probe(rewards: Sequence[str]) -> Sequence[ScoredItem]:
        prompt = next(turns)
        images_BHWC = draw_in_steps(model, [prompt.text], [seed], base=True, steps=[num_steps])[num_steps]
        return score_images(client, [prompt], [png_bytes(images_BHWC[0])], rewards, fresh=True)

    return probe


def _is_left_alone(failure: Failure) -> bool:
    return failure.status == Status.UNAVAILABLE


def _pause(pause_s: float, stopped: Callable[[], bool]) -> None:
    until = time.monotonic() + pause_s
    while not stopped() and (left_s := until - time.monotonic()) > 0:
        time.sleep(min(left_s, STOP_CHECK_S))
