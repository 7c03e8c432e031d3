"""Settings of a run: TOML checked by frozen pydantic models, one file a section. Imports no torch."""

from lasro.config.base import BUNDLED, Autocast, Dtype, Settings, Steps, Timesteps
from lasro.config.load import differing_keys, load_config
from lasro.config.method import AscentSettings, LasroSettings, MethodChoice
from lasro.config.model import BackboneModelSettings, LoraSettings, ModelSettings
from lasro.config.prompts import DatasetSettings, PromptSettings, PromptSource
from lasro.config.rewards import ObjectiveSettings, RewardSettings
from lasro.config.run import (
    BudgetSettings,
    EvaluationSettings,
    HealthSettings,
    RunSettings,
    ServiceSettings,
)
from lasro.config.surrogate import BackboneSettings, LatentSpace, SurrogateRun, SurrogateSettings
from lasro.config.tracking import TrackingSettings
from lasro.config.training import PretrainSettings, SamplingSettings, TrainSettings

__all__ = [
    "BUNDLED",
    "AscentSettings",
    "Autocast",
    "BackboneModelSettings",
    "BackboneSettings",
    "BudgetSettings",
    "DatasetSettings",
    "Dtype",
    "EvaluationSettings",
    "HealthSettings",
    "LasroSettings",
    "LatentSpace",
    "LoraSettings",
    "MethodChoice",
    "ModelSettings",
    "ObjectiveSettings",
    "PretrainSettings",
    "PromptSettings",
    "PromptSource",
    "RewardSettings",
    "RunSettings",
    "SamplingSettings",
    "ServiceSettings",
    "Settings",
    "Steps",
    "SurrogateRun",
    "SurrogateSettings",
    "Timesteps",
    "TrackingSettings",
    "TrainSettings",
    "differing_keys",
    "load_config",
]
