"""The surrogate trainer as a thread of the process that holds its model, with a real Redis and real HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lasro.config import LoraSettings, RunSettings
from lasro.errors import ConfigError, ConflictError, UnreachableError
from lasro.folder_lock import hold_folder
from lasro.models import frozen
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.training.distributed import DistributedContext
from lasro_client.services.in_process_trainer import InProcessTrainer, check_in_process
from lasro_client.services.surrogate_client import SurrogateClient
from lasro_surrogate_trainer import app

PROMPTS = ["a red star", "a blue square", "a green ring"]
IN_PROCESS: dict[str, Any] = {"services": {"in_process_trainer": True}}


def settings(path: Path | str = "bundled", **more: Any) -> RunSettings:
    tree: dict[str, Any] = {
        "name": "thread",
        "model": {"path": str(path), "device": "cpu"},
        "prompts": {"train": "unread", "held_out": "unread"},
        "rewards": [{"name": "reward"}],
        "surrogate": {"head_channels": 8},
    }
    return RunSettings.model_validate(tree | more)


@pytest.fixture(scope="module")
def model(one_level_model_path: Path) -> GeneratorModel:
    """A generator whose adapter is not that of the base."""
    model = load_model(settings(one_level_model_path).model)
    for parameter in model.add_lora(LoraSettings(rank=2), seed=0):
        parameter.data += 0.02
    return model


def why_ended(trainer: InProcessTrainer) -> str | None:
    try:
        return trainer.check()
    except UnreachableError as error:
        return str(error)


@pytest.fixture
def trainer(
    model: GeneratorModel, one_level_model_path: Path, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SurrogateClient]:
    monkeypatch.setattr(frozen, "load_trunk", lambda _: pytest.fail("a second model was loaded"))
    here = InProcessTrainer(model, settings(one_level_model_path).surrogate_run)
    url = here.start(redis_url, tmp_path / "data", tmp_path / "trainer.log")
    with SurrogateClient(url) as client:
        yield client
    here.stop()
    with pytest.raises(UnreachableError, match=r"surrogate_trainer: ended.*trainer\.log"):
        here.check()


def test_client_and_trainer_compute_at_once_as_one_after_the_other(
    trainer: SurrogateClient, model: GeneratorModel, one_level_model_path: Path
) -> None:
    """Guards against an adapter that is switched on the shared base: samples of the one with the weights of the other,
    only where both happen to compute. In a run they take turns but for what is asked from outside."""
    config = settings(one_level_model_path)
    trainer.create("thread", config.surrogate_run)
    noise_BCHW = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    latents, times = noise_BCHW.numpy(), np.full(3, 100)

    def sampled() -> torch.Tensor:
        with torch.no_grad():
            return model.predict_clean(noise_BCHW, model.steps(1)[0], model.embed(PROMPTS))

    def asked() -> np.ndarray:
        return trainer.gradient("thread", latents, times, latents, PROMPTS)[1]

    alone, gradient_alone = sampled(), asked()
    with torch.no_grad():
        base = model.predict_clean(noise_BCHW, model.steps(1)[0], model.embed(PROMPTS), base=True)
    assert not torch.equal(alone, base)
    gradients: list[np.ndarray] = []
    asking = threading.Thread(target=lambda: gradients.extend(asked() for _ in range(10)))
    asking.start()
    samples = [sampled()]
    while asking.is_alive():
        samples.append(sampled())
    asking.join()
    assert all(torch.equal(each, alone) for each in samples)
    assert len(gradients) == 10
    assert all(np.array_equal(each, gradient_alone) for each in gradients)


def test_a_run_of_other_settings_is_refused_as_by_a_process(
    trainer: SurrogateClient, one_level_model_path: Path
) -> None:
    """Bug: a trainer that is handed a model does not look at what the run asks for."""
    config = settings(one_level_model_path)
    trainer.create("thread", config.surrogate_run)
    other = settings(one_level_model_path, surrogate={"head_channels": 16}).surrogate_run
    with pytest.raises(ConflictError, match="head_channels"):
        trainer.create("thread", other)


def test_a_folder_that_another_trainer_holds_ends_it(
    model: GeneratorModel, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: the client waits three minutes for a thread that has ended, or two trainers write one journal."""
    monkeypatch.setattr(app, "LOCK_WAIT_S", 0.1)
    here = InProcessTrainer(model, settings().surrogate_run)
    with hold_folder(tmp_path, "held", "wait"):
        here.start(redis_url, tmp_path, tmp_path / "trainer.log")
        deadline = time.monotonic() + 60
        while (reason := why_ended(here)) is None and time.monotonic() < deadline:
            time.sleep(0.02)
    assert reason is not None
    assert "surrogate_trainer: ended" in reason
    assert "another trainer works in this folder" in (tmp_path / "trainer.log").read_text()


@pytest.mark.parametrize(
    ("change", "processes", "local", "words"),
    [
        ({}, 1, False, "LASRO_SURROGATE_TRAINER_URL"),
        ({}, 2, True, "2 processes"),
        ({"surrogate": {"device": "mps"}}, 1, True, "surrogate on mps"),
    ],
)
def test_what_cannot_be_in_one_process_is_refused_in_a_line(
    change: dict[str, Any], processes: int, local: bool, words: str
) -> None:
    """Bug: a trainer that is there already is left idle, each process starts one, or the surrogate is on a device that
    was not asked for."""
    peers = DistributedContext(count=processes)
    check_in_process(settings(**change), peers, local)
    with pytest.raises(ConfigError, match=words) as raised:
        check_in_process(settings(**change, **IN_PROCESS), peers, local)
    assert "\n" not in str(raised.value)
