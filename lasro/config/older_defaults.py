"""Settings of runs from before there was `train.drift_budget`: what was left out of them meant other things then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lasro.config.run import RunSettings

OLDER_DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"autocast": "none"},
    "surrogate": {"autocast": "none", "serve_autocast": "none", "buffer_groups": 300},
    "train": {
        "rounds": 150,
        "warmup_rounds": 0,
        "drift_budget": None,
        "prompts_per_round": 2,
        "seeds_per_prompt": 6,
        "generator_steps": 1,
        "batch_size": 16,
        "learning_rate": 5e-4,
        "surrogate_steps": 4,
    },
    "health": {"max_drift": 0.65},
}
"""By table, those that are others today."""


def is_older(written: Mapping[str, Any]) -> bool:
    """Whether a config.json, which names all settings that there were, is of such a run."""
    return "drift_budget" not in written.get("train", {})


def with_older_defaults(config: RunSettings) -> RunSettings:
    """The same with these defaults, wherever a setting is not given."""
    tables = {}
    for name, defaults in OLDER_DEFAULTS.items():
        table = getattr(config, name)
        left_out = defaults.keys() - table.model_fields_set
        tables[name] = table.model_copy(update={key: defaults[key] for key in left_out})
    return config.model_copy(update=tables)
