"""`train.steps`: which numbers of steps are refused, what a group and an update of others than [1, 2] hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from few_step_models import SDXL_BASE, with_scheduler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from shared_update import CurvedScore
from small_trainer import trainer_of
from tiny_model import write_tiny_model

from lasro.config import RunSettings, SamplingSettings, load_config
from lasro.errors import ConfigError, ModelError
from lasro.methods.registry import create_trainer
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.num_steps import JSON_NAMES, title
from lasro.training.group_summary import summarise_group
from lasro.training.prompts import Prompt
from lasro.training.sampling import draw_group_noises, draw_noises, generator_for, sample_groups, sample_latents
from lasro.wire import GroupStatus, ScoredItem
from lasro_client.evaluation.num_steps import ByNumSteps, by_name
from lasro_client.evaluation.result import Evaluation
from lasro_client.run import held_out
from lasro_client.run.base_sample_rewards import base_rewards_of, draw_again, read_base_rewards
from lasro_client.run.folder import RunFolder
from lasro_client.run.observer import Observer
from lasro_client.run.submission import RoundHeader, submission

RUN: dict[str, Any] = {
    "name": "steps",
    "prompts": {"train": "unused", "held_out": "unused"},
    "rewards": [{"name": "any"}],
}
PROMPTS = [Prompt("a red star"), Prompt("a blue square")]
TINY = 'name = "t"\n[prompts]\ntrain = "t"\nheld_out = "t"\n[[rewards]]\nname = "any"\n'


def run_settings(**tables: dict[str, Any]) -> RunSettings:
    return RunSettings.model_validate(RUN | tables)


REFUSED = {
    "train.steps=[]": r"train\.steps: got \[\], expected one or more numbers from 1 to 8, the smaller first",
    "train.steps=[2,1]": r"train\.steps: got \[2, 1\], expected one or more numbers from 1 to 8, the smaller first",
    "train.steps=[4,4]": r"train\.steps: got \[4, 4\], expected one or more",
    "train.steps=[0]": r"train\.steps: got \[0\], expected one or more numbers from 1 to 8",
    "train.steps=[9]": r"train\.steps: got \[9\], expected one or more numbers from 1 to 8",
    "train.steps=[4] train.timesteps=[999,299]": r"timesteps: got \[999, 299\] for steps \[4\], expected four",
    "train.steps=[4] train.gradient_steps=5": r"gradient_steps: got 5 with steps \[4\], expected at most 4",
    "train.steps=[4] train.two_step_every=2": r"two_step_every: got 2 with steps \[4\], expected 1: it spares",
    "train.steps=[4] train.second_step_rounds=2": r"second_step_rounds: got 2 with steps \[4\], expected 0: the second",
    'train.steps=[4] pretrain.probe_steps="second"': r'pretrain\.probe_steps: got "second" with train\.steps',
    "train.steps=[1] train.second_step_draws=2": r"second_step_draws: got 2 with steps \[1\], expected 1: there is no",
    "train.steps=[8] train.seeds_per_prompt=1": r"seeds_per_prompt: got 1 with steps \[8\], expected at least 2: ",
    "train.steps=[8] pretrain.seeds_per_prompt=1": r"pretrain\.seeds_per_prompt: got 1 with steps \[8\], expected at l",
    "train.steps=[4] pretrain.steps=[1,4]": r"pretrain\.steps: got \[1, 4\]; say it as train\.steps, which both stages",
    "train.steps=[4] method.one_step_weight=0.3": r"method\.one_step_weight: got 0\.3 with train\.steps \[4\]",
    "method.two_step_weight=0.3 method.step_weights=[1,2]": r"method\.two_step_weight: got 0\.3 with train\.steps",
    "train.steps=[1,4] method.step_weights=[1]": r"method\.step_weights: got \[1\.0\], expected 2, one for each",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(tmp_path: Path, given: str) -> None:
    """Guards against a setting of one and two steps that is passed over, or means something else, with other steps."""
    (tmp_path / "run.toml").write_text(TINY)
    with pytest.raises(ConfigError, match=REFUSED[given]) as refusal:
        load_config(tmp_path / "run.toml", given.split(" "))
    assert "\n" not in str(refusal.value)


def test_weights_of_the_terms() -> None:
    """Guards against weights of [1, 2] in a run of other steps, and against weights that do not add up to one."""
    own = {"one_step_weight": 0.2, "two_step_weight": 0.7}
    assert run_settings(method=own).step_weights == {1: 0.2, 2: 0.7}
    assert run_settings(train={"steps": [8]}).step_weights == {8: 1.0}
    assert run_settings(train={"steps": [1, 4]}).step_weights == {1: 0.5, 4: 0.5}
    given = {"train": {"steps": [1, 4]}, "method": {"step_weights": [0.0, 2.0]}}
    assert run_settings(**given).step_weights == {1: 0.0, 4: 2.0}


def test_both_stages_go_by_the_steps_of_the_run() -> None:
    """Guards against a surrogate that learns to rank samples of other steps than are trained, and against a config.json
    of an earlier commit that is another run's."""
    config = run_settings(train={"steps": [4]})
    assert config.pretrain.steps == (4,)
    written = config.model_dump(mode="json")
    assert "steps" not in written["pretrain"]
    assert RunSettings.model_validate(written) == config
    before = run_settings().model_dump(mode="json")
    for key in ("steps", "gradient_steps"):
        del before["train"][key]
    assert RunSettings.model_validate(before) == run_settings()


def test_steps_that_the_sampler_lacks_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    """Guards against a run that ends in its first round, or goes on at steps that stock diffusers would not take."""
    plain = write_tiny_model(tmp_path / "plain", guidance_embedding=False)
    ddim = {"timestep_spacing": "trailing", "_class_name": "DDIMScheduler"}
    folder = with_scheduler(plain, tmp_path / "ddim", SDXL_BASE | ddim)
    config = run_settings(model={"path": str(folder), "guidance": 1.0, "device": "cpu"}, train={"steps": [3]})
    with pytest.raises(ModelError, match=r"^steps: got 3, expected a number that divides 1000: others end between"):
        create_trainer(config, load_model(config.model))


def test_a_base_that_was_evaluated_in_other_steps_is_evaluated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a run that was started again in other steps, before its first round, and has no row to compare."""
    asked: list[tuple[int, ...]] = []

    def evaluated(*_: object, steps: tuple[int, ...], **more: object) -> Evaluation:
        asked.append(steps)
        return Evaluation(prompts=["p"], seed=0, rewards={"any": {n: [0.5] for n in steps}})

    monkeypatch.setattr(held_out, "evaluate", evaluated)
    for steps in ([1, 2], [1, 2], [4]):
        folder, unused = RunFolder(tmp_path, run_settings(train={"steps": steps}), "train"), cast("Any", None)
        found = held_out.HeldOut(folder, unused, PROMPTS[:1], [], unused, Observer()).evaluate_base()
        assert found.steps == tuple(steps)
    assert asked == [(1, 2), (4,)]


def test_values_by_number_of_steps_as_json() -> None:
    """Guards against keys of a log or summary that are numbers, or in the order in which they were measured."""
    adapter = TypeAdapter(ByNumSteps[float | None])
    assert adapter.dump_json({8: 0.5, 1: None}) == b'{"one_step":null,"eight_step":0.5}'
    assert adapter.validate_json('{"four_step": 1.5}') == {4: 1.5}
    assert by_name({2: "b", 1: "a"}) == {"one_step": "a", "two_step": "b"}
    with pytest.raises(ValidationError, match="got 'nine_step', expected a number of steps such as one_step"):
        adapter.validate_python({"nine_step": 1.0})
    assert [title(n) for n in (1, 2, 8)] == ["One step", "Two steps", "Eight steps"]
    assert list(JSON_NAMES) == list(range(1, 9))


STEPS = st.sets(st.integers(1, 8), min_size=1, max_size=3).map(sorted).map(tuple)


@pytest.fixture(scope="module")
def model(tiny_model_path: Path) -> GeneratorModel:
    return trainer_of(tiny_model_path).model


@pytest.mark.proof
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, K=st.integers(2, 3), D=st.integers(1, 2), references=st.booleans())
def test_a_group_holds_what_each_number_of_steps_draws_by_itself(
    model: GeneratorModel, steps: tuple[int, ...], K: int, D: int, references: bool
) -> None:
    """Guards against a sample that is labelled as another's, that ends before its last step, or that another number of
    steps changed; and against a group that the reward API would refuse."""
    D = 1 if max(steps) == 1 else D
    chosen = SamplingSettings(steps=steps, seeds_per_prompt=K, second_step_draws=D)
    policy = (
        (lambda noises, conditioning, num_steps: sample_latents(model, noises, conditioning, True, num_steps))
        if (references)
        else None
    )
    [group] = sample_groups(model, PROMPTS[:1], chosen, "seed", reference_policy=policy)
    noises = draw_group_noises(model, K, D, generator_for("seed", 0), max(steps))
    conditioning = model.embed([PROMPTS[0].text]).repeat_each(K)
    policies, at = (2 if references else 1), 0
    assert len(group.stages) == policies * K * sum(1 if n == 1 else D for n in steps)
    for is_reference in (False, True)[:policies]:
        for n in steps:
            count = K if n == 1 else K * D
            with torch.no_grad():
                alone = sample_latents(model, noises[:n], conditioning)[-1]
            rows = slice(at, at + count)
            assert torch.allclose(group.latents_BCHW[rows], alone, atol=1e-5)
            assert group.stages[rows] == [n] * count
            assert group.is_reference[rows] == [is_reference] * count
            assert group.seeds is not None
            assert group.seeds[rows] == [row // (count // K) for row in range(count)]
            assert group.draws is not None
            assert group.draws[rows] == [row % (count // K) for row in range(count)]
            at += count
    assert set(group.image_squares) == set(summarise_group(group).distances) == set(steps)
    posted = submission(group, RoundHeader(0, 0, ["any"], None), 0)
    assert posted.stages == group.stages


def test_rewards_of_stage_1_are_of_the_samples_that_are_drawn_again(model: GeneratorModel, tmp_path: Path) -> None:
    """Guards against rewards of one number of steps that are given to the samples of another."""
    chosen = SamplingSettings(steps=(1, 4), seeds_per_prompt=3, second_step_draws=2)
    groups = sample_groups(model, PROMPTS, chosen, 7, "pretrain", 5, base=True)
    items = [
        [ScoredItem.model_validate(scored(float(value))) for value in group.latents_BCHW.mean((1, 2, 3))]
        for group in groups
    ]
    statuses = [
        GroupStatus.model_validate({"group_id": "g", "state": "scored", "items": found, "reward_calls": 0})
        for found in items
    ]
    rounds = base_rewards_of(7, 5, [summarise_group(group) for group in groups], statuses, steps=(1, 4))
    path = tmp_path / "base_rewards.jsonl"
    path.write_text(rounds.model_dump_json(exclude_none=True) + "\n")
    assert json.loads(path.read_text())["steps"] == [1, 4]
    for seeds in (None, 2):
        found = read_base_rewards(path, 10, {"r"}, seeds)
        for latents, rewarded in zip(draw_again(model, found), found, strict=True):
            assert len(latents) == 9 if seeds is None else 6
            assert rewarded.group.rewards["r"] == pytest.approx(latents.float().mean((1, 2, 3)).tolist(), abs=2e-3)


def scored(value: float) -> dict[str, Any]:
    return {"scores": {"r": {"score": value, "status": "ok", "version": 1}}, "total": None}


@pytest.mark.parametrize("gradient_steps", [1, 2])
def test_an_update_has_the_gradient_of_the_last_steps(tiny_model_path: Path, gradient_steps: int) -> None:
    """Guards against a truncation that leaves out a step, or takes the noise of another one: against autograd by hand.

    L = -0.25 R(z1) - 0.75 R(z3), R the mean score over the batch.
    """
    trainer = trainer_of(
        tiny_model_path, {"step_weights": [0.25, 0.75]}, steps=(1, 3), gradient_steps=gradient_steps, batch_size=2
    )
    model = trainer.model
    with torch.no_grad():  # away from the start, where half of a LoRA has no gradient
        for parameter in trainer.parameters:
            parameter.add_(0.02)
    by_ours = trainer.sample(PROMPTS, trainer.draws())
    noises, conditioning = draw_noises(model, 2, trainer.draws(), 3), model.embed([prompt.text for prompt in PROMPTS])
    [first] = sample_latents(model, noises[:1], conditioning)
    schedule, x_t, taken = model.steps(3), noises[0], []
    for i, step in enumerate(schedule):
        if i:
            before, _ = taken[-1]
            before = before.detach() if i == 3 - gradient_steps else before
            x_t = model.next_input(x_t, before, noises[i], schedule[i - 1], step)
        taken.append((model.predict_clean(x_t, step, conditioning), x_t))
    assert [samples.num_steps for samples in by_ours] == [1, 3]
    for ours, (z, x_t) in zip(by_ours[1].trajectory, taken, strict=True):
        assert torch.allclose(ours.z_BCHW, z, atol=1e-5)
        assert torch.allclose(ours.x_t_BCHW, x_t, atol=1e-5)
    assert all(torch.equal(each.noise_BCHW, noise) for each, noise in zip(by_ours[1].trajectory, noises, strict=True))
    of_ours = 0.25 * by_ours[0].z_BCHW.square().mean() + 0.75 * by_ours[1].z_BCHW.square().mean()
    by_hand = 0.25 * first.square().mean() + 0.75 * taken[-1][0].square().mean()
    for found, expected in zip(
        *(torch.autograd.grad(each, trainer.parameters) for each in (of_ours, by_hand)), strict=True
    ):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6 + 1e-3 * expected.abs().max().item())
    statistics = trainer.step(PROMPTS, CurvedScore())
    assert list(statistics.scores) == [1, 3]
    assert statistics.grad_norm > 0
