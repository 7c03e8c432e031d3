"""The first half of a round, in both stages of the method: have its samples scored, and record what the rewards said.

Shape legend: N samples of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lasro.training.group_summary import GroupSummary, summarise_group
from lasro.training.prompts import Prompt
from lasro.training.sampling import Group
from lasro.wire import AdaptReply, GroupStatus, GroupSubmission, ScoredItem
from lasro_client.run.saved_samples import keep_samples
from lasro_client.run.submission import RoundHeader, submission
from lasro_client.services.feedback import FeedbackClient

OnScored = Callable[[Sequence[GroupSubmission], Sequence[GroupStatus]], None]
"""Is given the groups that this process posted, and what became of them, in the same order."""


class Collected(NamedTuple):
    """A round's groups with their rewards, in the same order."""

    groups: list[GroupSummary]
    scored: list[GroupStatus]

    @property
    def reward_calls(self) -> int:
        """Of the run so far."""
        return max(status.reward_calls for status in self.scored)

    @property
    def items(self) -> list[ScoredItem]:
        """The rewards of every sample, group by group."""
        return [item for status in self.scored for item in status.items or []]

    def has_total(self, required_rewards: Sequence[str]) -> bool:
        """Whether any sample has all the rewards without which there is no total."""
        return any(all(item.scores[name].score is not None for name in required_rewards) for item in self.items)

    def image_squares(self, num_steps: int) -> list[float]:
        """Mean square pixel differences of own samples to the reference samples of the same noise."""
        return [square for group in self.groups for square in group.image_squares.get(num_steps, [])]

    def is_unranked(self, reply: AdaptReply) -> bool:
        """Whether no group gave the trainer a ranked pair."""
        return reply.statistics.constant_groups >= len(self.scored)


def collect(
    feedback: FeedbackClient,
    prompts: list[Prompt],
    draw: Callable[[list[Prompt], int], list[Group]],
    header: RoundHeader,
    keep: Path | None = None,
    on_scored: OnScored | None = None,
) -> Collected:
    """Sample a group for each prompt and wait for its rewards. Every process does a share and returns all groups.

    `draw(prompts, first)` samples the groups of these prompts, the first of which has index `first` in the round.
    `keep` is the run folder to save latents and rewards in, None to save nothing. `on_scored` sees this process's
    share with its images. Raises BudgetError once `budget.max_reward_calls` is spent.
    """

    def collect_share() -> Collected:
        share = feedback.peers.share(len(prompts))
        groups = draw(prompts[share], share.start)
        posts = [submission(group, header, index) for index, group in enumerate(groups, share.start)]
        scored = feedback.post(posts)
        if keep is not None:
            keep_samples(keep, posts, scored)
        if on_scored is not None:
            on_scored(posts, scored)
        return Collected([summarise_group(group) for group in groups], scored)

    shares = feedback.peers.all_gather(collect_share, Collected)
    groups = [group for share in shares for group in share.groups]
    return Collected(groups, [status for share in shares for status in share.scored])
