"""The timesteps of the two steps as a setting: what is refused, who goes by it, and where it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from lasro.config import LoraSettings, ModelSettings, RunSettings, SamplingSettings, load_config
from lasro.errors import ConfigError, ConflictError, ModelError
from lasro.files import write_json
from lasro.methods.registry import create_trainer
from lasro.models.adapter_notes import noted_timesteps
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.models.sdxl import SdxlGenerator
from lasro.training.group_summary import summarise_group
from lasro.training.prompts import Prompt
from lasro.training.sampling import draw_noises, sample_groups, sample_latents
from lasro.wire import GroupState, GroupStatus, RewardValue, ScoredItem, Status
from lasro_client.cli.main import app
from lasro_client.evaluation.adapted_model import load_adapted
from lasro_client.evaluation.drift import measure_drift
from lasro_client.evaluation.score_prompts import draw_in_steps
from lasro_client.report.page import write_report
from lasro_client.run.base_sample_rewards import base_rewards_of, draw_again, read_base_rewards
from lasro_client.run.folder import RunFolder
from lasro_client.run.round_record import RoundRecord

RUN: dict[str, Any] = {"name": "run", "prompts": {"train": "t.txt", "held_out": "h.txt"}, "rewards": [{"name": "r"}]}
CHOSEN = (999, 299)
PROMPT = "a red star"


def run_settings(chosen: tuple[int, int] | None, **model: Any) -> RunSettings:
    return RunSettings.model_validate(RUN | {"train": {"timesteps": chosen}, "model": model})


def load(path: Path, timesteps: tuple[int, int] | None) -> GeneratorModel:
    return load_model(ModelSettings(path=str(path), device="cpu", timesteps=timesteps))


@pytest.mark.parametrize("wrong", ["[999]", "[999, 499, 299]", "[299, 999]", "[499, 499]", "[1000, 499]", "[999, -1]"])
def test_what_cannot_be_sampled_is_refused(tmp_path: Path, wrong: str) -> None:
    """Bug: a third step was left out without a word, or a rising schedule drew noise."""
    path = tmp_path / "run.toml"
    path.write_text('name = "x"\n[prompts]\ntrain = "t.txt"\nheld_out = "h.txt"\n[[rewards]]\nname = "r"\n')
    with pytest.raises(ConfigError) as refusal:
        load_config(path, [f"train.timesteps={wrong}"])
    expected = "two timesteps from 999 to 0, the larger first, such as [999, 299]; leave it out for the scheduler's own"
    assert str(refusal.value) == f"{path}: train.timesteps: got {wrong}, expected {expected}"


def test_the_runs_model_samples_at_them_and_the_trainer_hears_nothing() -> None:
    """Bug: a run was sampled at the scheduler's own timesteps, or a trainer of the last release refused its model."""
    config = run_settings(CHOSEN)
    assert config.model.timesteps == CHOSEN
    assert config.surrogate_run.model_dump(mode="json") == run_settings(None).surrogate_run.model_dump(mode="json")
    again = RunSettings.model_validate(json.loads(config.model_dump_json()))
    assert again == config
    assert run_settings(CHOSEN, timesteps=CHOSEN) == config
    with pytest.raises(ValueError, match=r"model\.timesteps: got \[999, 299\]; say it as train\.timesteps"):
        run_settings(None, timesteps=CHOSEN)


def test_steps(one_level_model_path: Path) -> None:
    """Bug: one step began elsewhere than two, or four steps were drawn by two timesteps and two of another schedule."""
    model = load(one_level_model_path, (899, 300))
    assert [[step.time for step in model.steps(n)] for n in (1, 2)] == [[899], [899, 300]]
    with pytest.raises(ModelError, match=r"timesteps: got \[899, 300\] for 4 steps, expected at most 2 steps; leave"):
        model.steps(4)
    assert [step.time for step in model.with_timesteps(None).steps(2)] == [999, 499]
    assert [step.time for step in model.steps(2)] == [899, 300]


def test_a_family_without_timesteps_refuses_them(one_level_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a model that is sampled at noise levels was trained at its own, whatever the run said."""
    monkeypatch.setattr(SdxlGenerator, "takes_timesteps", False)
    with pytest.raises(ModelError, match=r"timesteps: got \[999, 299\], but the steps of SdxlGenerator are at no"):
        load(one_level_model_path, CHOSEN)
    load(one_level_model_path, None)


def test_training_evaluation_and_drift_go_by_them(one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: what was trained at one second timestep was measured at another."""
    place = {"path": str(one_level_model_path), "device": "cpu"}
    model, own = (load_model(run_settings(chosen, **place).model) for chosen in (CHOSEN, None))
    noises = draw_noises(model, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        z1, z2 = sample_latents(model, noises, model.embed([PROMPT]), base=True)
        own_z1, own_z2 = sample_latents(own, noises, own.embed([PROMPT]))
        x_t = own.diffuse(z1, noises[1], torch.tensor([299]))
        assert isinstance(own, SdxlGenerator)
        assert torch.allclose(z2, own.predict_at(x_t, 299, own.embed([PROMPT])), atol=1e-5)
    assert torch.equal(z1, own_z1)
    assert not torch.allclose(z2, own_z2, atol=1e-2)
    trainers = [create_trainer(run_settings(None), each) for each in (model, own)]
    trained = [trainer.sample([Prompt(PROMPT)], trainer.draws()) for trainer in trainers]
    assert torch.equal(trained[0][0].z_BCHW, trained[1][0].z_BCHW)
    assert not torch.allclose(trained[0][1].z_BCHW, trained[1][1].z_BCHW, atol=1e-2)
    images, own_images = (draw_in_steps(each, [PROMPT], [0]) for each in (model, own))
    assert (images[1] == own_images[1]).all()
    assert (images[2] != own_images[2]).any()
    for each, name in ((model, "chosen"), (own, "own")):
        measure_drift(each, [Prompt(PROMPT)], 0, tmp_path / name)
    assert len({path.read_bytes() for path in tmp_path.glob("*/before/00000.png")}) == 2


def test_another_timestep_is_another_run(tmp_path: Path) -> None:
    """Bug: half of a run was trained at one timestep and half at another, or a run of before was not resumed."""
    RunFolder(tmp_path, run_settings(None), "train").open()
    RunFolder(tmp_path, run_settings(None), "train").log(RoundRecord(stage="train", round=0))
    config = json.loads((tmp_path / "config.json").read_text())
    assert "timesteps" not in config["model"]
    del config["train"]["timesteps"]
    write_json(tmp_path / "config.json", config)
    RunFolder(tmp_path, run_settings(None), "train").open()
    with pytest.raises(ConflictError, match=r"differing in train\.timesteps; change"):
        RunFolder(tmp_path, run_settings(CHOSEN), "train").open()


def test_rewards_of_stage_1_stay_with_the_samples_that_they_were_given_for(
    tmp_path: Path, one_level_model_path: Path
) -> None:
    """Bug: a run at 299 drew the base's samples of a stage 1 at 499 again at 299, for the old rewards."""
    model, own = load(one_level_model_path, CHOSEN), load(one_level_model_path, None)
    for sampled, timesteps, redrawn in ((own, None, model), (model, CHOSEN, own)):
        groups = sample_groups(
            sampled, [Prompt(PROMPT)], SamplingSettings(seeds_per_prompt=2), 7, "pretrain", 5, base=True
        )
        items = [ScoredItem(scores={"r": RewardValue(score=s, status=Status.OK)}, total=None) for s in (0.0, 1.0, 2.0)]
        items.append(ScoredItem(scores={"r": RewardValue(score=None, status=Status.TIMEOUT)}, total=None))
        scored = [GroupStatus(group_id="g", state=GroupState.SCORED, reward_calls=0, items=items)]
        folder = RunFolder(tmp_path / str(timesteps), run_settings(timesteps), "pretrain")
        folder.path.mkdir()
        folder.add_base_rewards(base_rewards_of(7, 5, [summarise_group(group) for group in groups], scored, timesteps))
        path = folder.path / "base_rewards.jsonl"
        assert ("timesteps" in path.read_text()) == (timesteps is not None), "as it was, where it was not set"
        found = read_base_rewards(path, 10, {"r"})
        assert found[0].group.rewards == {"r": [0.0, 1.0, 2.0, None]}
        (latents_NCHW,) = draw_again(redrawn, found)
        torch.testing.assert_close(latents_NCHW.float(), groups[0].latents_BCHW, atol=2e-3, rtol=2e-3)
    both = tmp_path / "both.jsonl"
    both.write_text("".join(path.read_text() for path in tmp_path.glob("*/base_rewards.jsonl")))
    with pytest.raises(ConfigError, match=r"got rounds of runs with different train\.timesteps, expected those of one"):
        read_base_rewards(both, 10, {"r"})


def test_an_adapter_says_what_it_was_trained_for(
    tmp_path: Path, one_level_model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bug: an adapter that was trained for 299 was drawn at 499, and nobody was told."""
    for timesteps in (None, CHOSEN, (999, 499)):
        model = load(one_level_model_path, timesteps)
        for parameter in model.add_lora(LoraSettings(rank=2), seed=0):
            torch.nn.init.constant_(parameter, 0.01)
        folder = tmp_path / str(timesteps)
        file = model.save_lora(folder, LoraSettings(rank=2))
        assert noted_timesteps(folder) == timesteps
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata()["format"] == "pt"
    settings = ModelSettings(path=str(one_level_model_path), device="cpu")
    load_adapted(settings, tmp_path / "None", partial=False)
    load_adapted(settings, tmp_path / "(999, 499)", partial=False)
    load_adapted(settings.model_copy(update={"timesteps": CHOSEN}), tmp_path / "(999, 299)", partial=False)
    assert not caplog.records, "it is sampled as it was trained"
    load_adapted(settings, tmp_path / "(999, 299)", partial=False)
    (record,) = caplog.records
    assert record.message == (
        f"{tmp_path}/(999, 299): was trained for timesteps [999, 299]; sample at these: --timesteps 999,299 here, "
        "timesteps=[999, 299] in stock diffusers"
    )


def test_generate_takes_them_and_says_so(tmp_path: Path, one_level_model_path: Path) -> None:
    """Bug: the option changed no image, or nothing beside the images said at which timesteps they were drawn."""
    (tmp_path / "p.txt").write_text(PROMPT)
    common = ["generate", "--prompts", str(tmp_path / "p.txt"), "--model", str(one_level_model_path), "--device", "cpu"]
    found: dict[str, Any] = {}
    for name, options in {
        "own": [],
        "two": ["--timesteps", "999,299"],
        "set": ["--set", "model.timesteps=[999, 299]"],
        "one": ["--timesteps", "999, 299", "--steps", "1"],
    }.items():
        out = tmp_path / name
        result = CliRunner().invoke(app, [*common, "--out", str(out), *options], catch_exceptions=False)
        assert result.exit_code == 0
        image = json.loads((out / "index.json").read_text())["images"][0]
        found[name] = (image.get("timesteps"), (out / "00000.png").read_bytes())
    assert [found[name][0] for name in found] == [None, [999, 299], [999, 299], [999]]
    assert found["two"][1] == found["set"][1] != found["own"][1]
    refused = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "o"), "--timesteps", "999,299", "--steps", "4"])
    assert refused.exit_code == 2
    with pytest.raises(ConfigError, match=r"timesteps: got \[299, 999\], expected two timesteps"):
        CliRunner().invoke(app, [*common, "--out", "o", "--timesteps", "299,999"], catch_exceptions=False)


def test_a_finished_run_says_how_its_adapter_is_sampled(tmp_path: Path) -> None:
    """Bug: the end of a run named the adapter, and nothing said that `num_inference_steps=2` is not what it learned."""
    for name, table, said in (("own", "", ""), ("chosen", "[train]\ntimesteps = [999, 299]\n", "[999, 299]")):
        path, out = tmp_path / f"{name}.toml", tmp_path / name
        path.write_text(f'name = "x"\n[prompts]\ntrain = "t.txt"\nheld_out = "h.txt"\n[[rewards]]\nname = "r"\n{table}')
        config = load_config(path)
        RunFolder(out, config, "train").open()
        RunFolder(out, config, "train").finish(
            {"rewards": {}, "adapter": "adapter", "rounds": 150} | ({"timesteps": [999, 299]} if said else {})
        )
        result = CliRunner().invoke(app, ["train", str(path), "--out", str(out)], catch_exceptions=False)
        sample = f"sample   pipeline(prompt, timesteps={said}, guidance_scale=4)\n"
        assert (sample in result.stdout) == bool(said)
        assert ("sample " in result.stdout) == bool(said)


def test_the_report_shows_them(tmp_path: Path) -> None:
    """Bug: a reader of the report sampled the adapter at timesteps for which it was not trained."""
    write_json(tmp_path / "config.json", {"name": "r", "train": {"timesteps": [999, 299]}})
    assert "timesteps=[999, 299]" in write_report(tmp_path).read_text().partition('<nav aria-label="Contents">')[0]
    write_json(tmp_path / "config.json", {"name": "r", "train": {}})
    assert "timesteps=" not in write_report(tmp_path).read_text()
