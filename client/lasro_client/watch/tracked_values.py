"""What trackers are sent: a round's figures, those of the summary, the settings, and pictures as one grid.

Names have a slash after what they are of, by which trackers group them: `gain/two_step`, `reward/brightness/one_step`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lasro.config.load import flattened
from lasro.images import MAX_PIXELS, decode_image
from lasro_client.evaluation.num_steps import by_name
from lasro_client.run.round_record import Means, RoundRecord

MOST_COLUMNS = 4


def figures(record: RoundRecord) -> dict[str, float]:
    """All that was measured in a round; what was not is left out. Values are finite."""
    rewards, surrogate, generator = record.rewards, record.surrogate, record.generator
    means: dict[str, Means] = {
        **{f"reward/{name}": each for name, each in rewards.rewards.items()},
        "total": rewards.total,
        "reference": rewards.reference,
        "gain": rewards.gain,
        "vetoed": rewards.vetoed,
        "score": generator.score,
        "drift": generator.drift,
        "distance": generator.distance,
    }
    found = {f"{what}/{steps}": value for what, each in means.items() for steps, value in by_name(each).items()}
    found |= {f"surrogate/accuracy/{kind}": each.accuracy for kind, each in surrogate.accuracy_by_kind.items()}
    found |= {
        "distance/target": generator.drift_target,
        "surrogate/loss": surrogate.loss,
        "surrogate/pair_accuracy": surrogate.pair_accuracy,
        "surrogate/fresh_pair_accuracy": surrogate.fresh_pair_accuracy,
        "surrogate/held_out_pair_accuracy": surrogate.held_out_pair_accuracy,
        "surrogate/reward_gap": surrogate.reward_gap,
        "surrogate/ranked_pairs": surrogate.ranked_pairs,
        "surrogate/tied_pairs": surrogate.tied_pairs,
        "generator/loss": generator.loss,
        "generator/regulariser": generator.regulariser,
        "generator/regulariser_weight": generator.regulariser_weight,
        "generator/grad_norm": generator.grad_norm,
        "run/elapsed_s": record.elapsed_s,
        "run/reward_calls": record.reward_calls,
        "run/policy_version": record.policy_version,
        "run/restarts": record.restarts,
        "run/failed_samples": surrogate.failed_samples,
        "run/trouble": record.health.trouble is not None,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def summary_figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """Rewards and drift of a summary.json, such as `summary/rewards/NAME/one_step/difference/mean`."""
    chosen = {name: summary.get(name) for name in ("rewards", "drift", "held_out_drift")}
    flat = flattened(chosen, "summary/", "/")
    return {name: float(value) for name, value in flat.items() if isinstance(value, int | float)}


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a config.json by their dotted names, lists as JSON, without those that have no value."""
    given = {name: value for name, value in flattened(config).items() if value is not None}
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in given.items()}


def grid(files: Sequence[Path]) -> Image.Image:
    """The pictures of these files side by side, in rows of at most MOST_COLUMNS; raises WireError for another file."""
    pictures = [decode_image(file.read_bytes(), MAX_PIXELS) for file in files]
    width, height = pictures[0].size
    columns = min(MOST_COLUMNS, len(pictures))
    found = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for index, picture in enumerate(pictures):
        found.paste(picture, (index % columns * width, index // columns * height))
    return found
