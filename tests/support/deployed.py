"""What reads the variables of each deployed service, by the name that compose and Kubernetes give it."""

from __future__ import annotations

from lasro.reward_sdk import RewardEnvironment
from lasro_reward_api.settings import RewardApiSettings, WorkerSettings
from lasro_surrogate_trainer.settings import TrainerEnvironment

SETTINGS = {
    "reward-api": RewardApiSettings,
    "reward-worker": WorkerSettings,
    "surrogate-trainer": TrainerEnvironment,
    "reward-attribute-binding": RewardEnvironment,
    "reward-jpeg": RewardEnvironment,
}
