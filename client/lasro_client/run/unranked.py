"""What a round's record says of its pairs: why there are none, and whether most are ties. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from lasro_client.run.round_record import RoundRecord
from lasro_client.services.failures import describe, remedies

MOST_TIED = 0.5
"""Share of a round's pairs that tie, above which the user hears of it: half of the paid rewards rank nothing."""


def why_unranked(record: RoundRecord) -> str:
    """Why a round gave no ranked pair, and what to do about it, on one line."""
    reasons = []
    vetoed = [share for share in record.rewards.vetoed.values() if share is not None]
    if vetoed and min(vetoed) == 1:
        reasons.append("a guard vetoed every sample; lower its floor")
    if record.rewards.failures:
        failures = record.rewards.failures
        reasons.append(f"{describe(failures)}; {remedies(failures)}")
    if record.surrogate.tied_pairs:
        reasons.append(describe_ties(record))
    elif record.rewards.scored_samples:
        reasons.append("no two scored samples of a prompt could be compared; raise seeds_per_prompt")
    return "; ".join(reasons) or "no sample has a finite total; see the rewards in log.jsonl"


def has_many_ties(record: RoundRecord) -> bool:
    """Whether most of the round's pairs are ties."""
    surrogate = record.surrogate
    return surrogate.tied_pairs > MOST_TIED * (surrogate.tied_pairs + surrogate.ranked_pairs)


def describe_ties(record: RoundRecord) -> str:
    """How many pairs of a round tie, by which margin, and what to do about it."""
    surrogate = record.surrogate
    pairs = surrogate.tied_pairs + surrogate.ranked_pairs
    spread, margin = surrogate.spread or 0.0, surrogate.tie_margin or 0.0
    says = f"{surrogate.tied_pairs} of {pairs} pairs are ties"
    if spread == 0:
        return f"{says}: totals do not vary within a prompt; check that the rewards look at the image"
    says += (
        f": totals of a prompt have a standard deviation of {spread:.3g}, and differences up to the tie margin of "
        f"{margin:.3g} do not rank"
    )
    if spread > margin:
        return f"{says}; take a reward with more grades, other prompts or more seeds_per_prompt"
    return f'{says}; lower surrogate.tie_margin or set its tie_margin_unit = "spread", in another folder (--out)'


def tied_share(records: Sequence[RoundRecord]) -> float:
    """Share of ties among the pairs of all these rounds, 0 to 1; 0 without pairs."""
    tied = sum(record.surrogate.tied_pairs for record in records)
    pairs = tied + sum(record.surrogate.ranked_pairs for record in records)
    return tied / pairs if pairs else 0.0
