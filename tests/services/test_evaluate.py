"""Evaluation and drift of a tiny random model, scored by a real reward endpoint through the real reward API."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import PLAIN, diffusers_form, random_factors, write_adapter
from PIL import Image

from lasro.config import LoraSettings, ModelSettings, RewardSettings, RunSettings, ServiceSettings
from lasro.errors import ConfigError, NonFiniteError, NotFoundError, RewardError
from lasro.models.registry import load_model
from lasro.reward_sdk import RejectedItem, create_reward_app, reward
from lasro.training.distributed import DistributedContext
from lasro.training.prompts import Prompt
from lasro.wire import Protocol, RewardSpec
from lasro_client.evaluation import score_prompts as evaluation_module
from lasro_client.evaluation.best_of import evaluate_best_of
from lasro_client.evaluation.compare_to_base import evaluate_beside_base
from lasro_client.evaluation.drift import (
    draw_base,
    measure_drift,
    measure_held_out_drift,
    measure_movement,
    stored_base,
)
from lasro_client.evaluation.result import load_evaluation, save_evaluation
from lasro_client.evaluation.score_prompts import draw_in_steps, evaluate
from lasro_client.run.folder import RunFolder
from lasro_client.run.held_out import HeldOut
from lasro_client.run.observer import Observer
from lasro_client.run.outcome import evaluated
from lasro_client.run.reward_watch import RewardWatch, probe_with
from lasro_client.services.connect import services
from lasro_client.services.reward_client import RewardClient

SEED = 5
PROMPTS = [Prompt(f"a {color} star", {"gain": i}) for i, color in enumerate(("red", "blue", "green", "black", "pink"))]


@reward
def brightness(images, prompts, metadata):
    """Mean pixel plus what the metadata says; refuses green."""
    return [
        RejectedItem("no green") if "green" in prompt else float(np.asarray(image).mean()) + extra["gain"]
        for image, prompt, extra in zip(images, prompts, metadata, strict=True)
    ]


class Cold:
    """A reward that fails for its first `cold` calls."""

    def __init__(self) -> None:
        self.cold = 0

    def __call__(self, images, prompts, metadata):
        if self.cold > 0:
            self.cold -= 1
            raise RuntimeError("the weights are loading")
        return [0.5] * len(images)


COLD = Cold()


@reward
def picky(images, prompts, metadata):
    """Fails for red."""
    if any("red" in prompt for prompt in prompts):
        raise RuntimeError("no red")
    return [0.5] * len(images)


@pytest.fixture(scope="module")
def api(url, serve):
    torch.set_num_threads(1)
    with RewardClient(url) as client:
        url = serve(create_reward_app(brightness)) + "/"
        client.register(RewardSpec(name="brightness", url=url, protocol=Protocol.NATIVE), replace=True)
        cold = serve(create_reward_app(reward(COLD))) + "/"
        client.register(
            RewardSpec(name="cold", url=cold, protocol=Protocol.NATIVE, timeout_s=45, cache=False), replace=True
        )
        url = serve(create_reward_app(picky)) + "/"
        client.register(RewardSpec(name="picky", url=url, protocol=Protocol.NATIVE), replace=True)
        yield client


@pytest.fixture
def model(one_level_model_path):
    return load_model(ModelSettings(path=str(one_level_model_path), device="cpu"))


def with_adapter(model, scale):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.add_lora(LoraSettings(rank=2), seed=0):
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return model


def test_scores_belong_to_their_prompt_stage_and_seed(model, api, tmp_path, monkeypatch):
    """Batches shift by one, stages swapped, or metadata lost: each score is checked against the kept image."""
    monkeypatch.setattr(evaluation_module, "LARGEST_BATCH", 2)
    seen = []
    found = evaluate(
        model, PROMPTS, ["brightness"], api, SEED, tmp_path, lambda done, total: seen.append((done, total))
    )
    for num_steps, folder in ((1, "one"), (2, "two")):
        for index, score in enumerate(found.rewards["brightness"][num_steps]):
            pixels = np.asarray(Image.open(tmp_path / folder / f"{index:05d}.png"))
            assert score == (None if index == 2 else pytest.approx(pixels.mean() + index))
    assert found.failures == {"brightness": {"rejected": 2}}
    assert found.describe_failures() == "reward brightness scored 8 of 10 images (rejected: no green)"
    found.check_scored()
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_one_pass_gives_the_images_of_several_stock_calls(model, one_level_model_path):
    """Images of each number of steps must be those of separate single-prompt calls of diffusers with the same seed."""
    diffusers: Any = importlib.import_module("diffusers")
    stock = diffusers.StableDiffusionXLPipeline.from_pretrained(one_level_model_path, add_watermarker=False)
    stock.scheduler = diffusers.LCMScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    texts = [prompt.text for prompt in PROMPTS[:3]]
    ours = draw_in_steps(model, texts, range(SEED, SEED + 3), steps=(1, 2, 4))
    for steps, images in ours.items():
        for index, text in enumerate(texts):
            expected = stock(
                prompt=text,
                num_inference_steps=steps,
                guidance_scale=4.0,
                height=16,
                width=16,
                generator=torch.Generator("cpu").manual_seed(SEED + index),
                output_type="np",
            ).images[0]
            assert np.abs(images[index] - (expected * 255).round()).max() <= 2


def test_base_is_the_model_without_its_adapter(model, api):
    """`base=True` on a model that carries an adapter must give the numbers from before it was there."""
    before = evaluate(model, PROMPTS[:2], ["brightness"], api, SEED, base=True)
    with_adapter(model, 0.3)
    assert evaluate(model, PROMPTS[:2], ["brightness"], api, SEED, base=True) == before
    assert evaluate(model, PROMPTS[:2], ["brightness"], api, SEED) != before


def test_the_base_row_is_drawn_without_the_adapters_text_encoders(one_level_model_path, api, tmp_path):
    """The base row came from the adapter's text encoders, so that the difference left out what they had done."""
    weights = one_level_model_path / "text_encoder_2" / "model.safetensors"
    factors = random_factors(weights, ("q_proj", "v_proj", "fc1", "fc2"), scale=0.5)
    adapter = write_adapter(tmp_path / "adapter" / PLAIN, diffusers_form(factors, "text_encoder_2."))
    settings = ModelSettings(path=str(one_level_model_path), device="cpu")
    options = (PROMPTS[:2], ["brightness"], api, SEED, None, lambda done, total: None)
    alone, nothing = evaluate_beside_base(settings, None, *options)
    table, keys = evaluate_beside_base(settings, adapter, *options)
    row = table["brightness"]["two_step"]
    assert row["base"] == alone["brightness"]["two_step"]["base"] != row["adapted"]
    assert nothing is None
    assert keys is not None
    assert keys.loaded == keys.total == 2 * len(factors)


def test_the_best_of_several_is_chosen_by_the_first_reward(one_level_model_path, api, tmp_path):
    """Guards against a choice across prompts or numbers of steps, an image that is not the chosen one's, and a failed
    candidate that is chosen: every score is the highest of three ordinary evaluations."""
    settings = ModelSettings(path=str(one_level_model_path), device="cpu")
    count, prompts, noted = 3, PROMPTS[:3], []
    found = evaluate_best_of(
        count, load_model(settings), prompts, ["brightness"], api, SEED, tmp_path / "best", lambda *at: noted.append(at)
    )
    each = [evaluate(load_model(settings), prompts, ["brightness"], api, SEED + j * len(prompts)) for j in range(count)]
    for n, folder in ((1, "one"), (2, "two")):
        for i, score in enumerate(found.rewards["brightness"][n]):
            if i == 2:  # refuses green
                assert score is None
                continue
            assert score == max(one.rewards["brightness"][n][i] or 0 for one in each)
            pixels = np.asarray(Image.open(tmp_path / "best" / folder / f"{i:05d}.png"))
            assert score == pytest.approx(pixels.mean() + i)
    assert found.failures == {"brightness": {"rejected": 2}}
    assert noted[-1] == (9, 9)
    out, progress = tmp_path / "beside", lambda done, total: None
    table, _ = evaluate_beside_base(
        settings, None, PROMPTS[:2], ["brightness"], api, SEED, out, progress, steps=(4,), best_of=count
    )
    assert sorted(path.name for path in (out / "best_of").iterdir()) == ["evaluation.json", "four"]
    (row,) = table["brightness"].values()
    assert list(table["brightness"]) == ["four_step"]
    assert row["best_of"]["mean"] > row["base"]["mean"]
    assert row["difference"]["mean"] == pytest.approx(row["best_of"]["mean"] - row["base"]["mean"])


def test_drift_is_zero_without_change_and_grows_with_it(model, tmp_path):
    """The figure must come from the adapter alone, and the kept images from both models."""
    assert measure_drift(model, PROMPTS[:2], SEED).ratio.mean == 0
    drift = measure_drift(with_adapter(model, 0.3), PROMPTS[:2], SEED, tmp_path)
    assert drift.ratio.mean is not None
    assert drift.ratio.mean > 0.01
    pairs = [Path(tmp_path / name / "00001.png").read_bytes() for name in ("before", "after")]
    assert pairs[0] != pairs[1]


def test_held_out_drift_is_that_of_the_evaluated_images(model, api, tmp_path):
    """Bug: nothing was measured on held-out prompts. Guards against other noise than the evaluation's."""
    base = draw_base(model, PROMPTS[:2], SEED)
    assert measure_movement(model, base)[2].mean == 0
    moved = with_adapter(model, 0.3)
    for name in ("before", "after"):
        evaluate(moved, PROMPTS[:2], ["brightness"], api, SEED, tmp_path / name, base=name == "before")
    found, movement = measure_held_out_drift(moved, PROMPTS[:2], SEED, tmp_path), measure_movement(moved, base)
    assert found[1].distance == movement[1]
    assert found[2].distance == movement[2]
    assert all(each.mean is not None and each.mean > 0.001 for each in movement.values())
    assert found[2].ratio.n == 2


def test_the_bases_images_are_those_of_its_evaluation(model, api, tmp_path, monkeypatch):
    """Guards against a start of every run that draws the base's images a second time."""
    evaluate(model, PROMPTS[:2], ["brightness"], api, SEED, tmp_path, base=True)
    drawn = draw_base(model, PROMPTS[:2], SEED)
    monkeypatch.setattr(model, "predict_clean", None)  # whoever draws now fails
    stored = stored_base(model, PROMPTS[:2], SEED, tmp_path)
    assert stored.units == drawn.units
    for of_stored, of_drawn in zip(stored.images.values(), drawn.images.values(), strict=True):
        assert all((a == b).all() for a, b in zip(of_stored, of_drawn, strict=True))
    (tmp_path / "two" / "00001.png").unlink()
    with pytest.raises(FileNotFoundError):
        stored_base(model, PROMPTS[:2], SEED, tmp_path)


def test_the_movement_of_one_prompt_is_in_changes_of_seed(model):
    """Guards against a run about one prompt that has no figure, or divides by zero."""
    base = draw_base(model, PROMPTS[:1], SEED)
    assert all(base.units.values())
    assert measure_movement(with_adapter(model, 0.0), base)[1].mean == 0


def test_a_broken_adapter_is_not_scored(model, api):
    """The decoder turns NaN into black pixels, which this reward would rate like any image."""
    with_adapter(model, float("nan"))
    with pytest.raises(NonFiniteError, match="a red star"):
        evaluate(model, PROMPTS[:1], ["brightness"], api, SEED)


def test_an_unknown_reward_is_named(model, api):
    """A typing error must not come back as a table of failures."""
    with pytest.raises(NotFoundError, match="aesthetics"):
        evaluate(model, PROMPTS[:1], ["aesthetics"], api, SEED)


@pytest.fixture
def held_out(model, api, tmp_path):
    """A run's held-out prompts, and the watch over its reward, which is waited for up to 5 s."""
    config = RunSettings.model_validate(
        {
            "name": "cold",
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "cold"}],
            "services": {"reward_wait_s": 5.0},
        }
    )
    observer, peers = Observer(), DistributedContext()
    watch = RewardWatch(config, probe_with(model, PROMPTS, SEED, api), observer, peers)
    return HeldOut(RunFolder(tmp_path, config, "train"), model, PROMPTS[:1], [], api, observer), watch


def test_an_evaluation_of_a_cold_reward_is_taken_again(held_out, tmp_path):
    """Bug: an evaluation in which nothing was scored was stored as the base's, and never taken again."""
    evaluation, watch = held_out
    COLD.cold = 2  # the one call of each number of steps; the probe is answered
    found = evaluated(evaluation.evaluate_base, evaluation, watch)
    assert found.rewards["cold"] == {1: [0.5], 2: [0.5]}
    assert load_evaluation(tmp_path / "evaluation" / "before.json") == found
    empty = found.model_copy(update={"rewards": {"cold": {1: [None], 2: [None]}}})
    save_evaluation(tmp_path / "evaluation" / "before.json", empty)
    assert evaluation.evaluate_base() == found, "one that an earlier release stored so is not read back"


@pytest.mark.parametrize(("status", "again"), [("http_error", True), ("rejected", False)])
def test_a_resumed_run_scores_what_its_base_lacks(held_out, tmp_path, status, again):
    """Bug: where a reward died after 10 images of 256, a run that was resumed compared those ten for ever."""
    evaluation, _ = held_out
    COLD.cold = 0
    found = evaluation.evaluate_base()
    partial = found.model_copy(
        update={
            "rewards": {"cold": {1: [0.25], 2: [None]}},
            "failures": {"cold": {status: 1}},
            "errors": {"cold": f"{status}: no"},
        }
    )
    save_evaluation(tmp_path / "evaluation" / "before.json", partial)
    assert evaluation.evaluate_base() == (found if again else partial)


def test_an_evaluation_in_which_nothing_was_scored_is_an_error(held_out, tmp_path):
    """Guards against an empty row in the summary of a run, with exit status 0."""
    evaluation, _ = held_out
    COLD.cold = 2
    with pytest.raises(RewardError, match=r"reward cold scored 0 of 2 images \(http_error: HTTP 424"):
        evaluation.evaluate_adapted()
    assert not (tmp_path / "evaluation" / "after.json").exists()


def test_a_reward_is_probed_by_a_sample_of_its_own_run(model, api):
    """Guards against a probe that a reward fails which needs metadata: this one is asked with the first prompt's."""
    (item,) = probe_with(model, PROMPTS, SEED, api)(["brightness"])
    assert item.scores["brightness"].status == "ok"


def test_a_reward_that_fails_for_the_first_prompt_alone_answers_for_the_next(model, api):
    """Bug: a run whose reward crashes on one prompt of a thousand could not start, if that was the first one."""
    probe = probe_with(model, PROMPTS, SEED, api)
    assert [probe(["picky"])[0].scores["picky"].status for _ in PROMPTS[:2]] == ["http_error", "ok"]


def test_a_setting_that_a_registered_reward_does_not_have_is_refused(api, url, tmp_path):
    """Guards against a timeout of the file that is passed over, since the reward is registered elsewhere."""
    at = ServiceSettings(reward_api=url, surrogate_trainer="http://127.0.0.1:1")
    with services(at, [RewardSettings(name="cold", timeout_s=45)], tmp_path) as connected:
        assert not connected.local
    with (
        pytest.raises(ConfigError, match=r"reward cold: got timeout_s = 90\.0, but it is registered with 45\.0"),
        services(at, [RewardSettings(name="cold", timeout_s=90)], tmp_path),
    ):
        pytest.fail("a run may not start so")
