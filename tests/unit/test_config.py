"""Settings: what is shipped loads, what is wrong is named."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lasro.config import (
    DatasetSettings,
    ModelSettings,
    RunSettings,
    Settings,
    SurrogateRun,
    differing_keys,
    load_config,
)
from lasro.config.method import LasroSettings
from lasro.config.model import UNET_TARGETS
from lasro.errors import ConfigError, ConflictError
from lasro.functional.reward_totals import RewardObjective
from lasro.training.known_datasets import KNOWN_DATASETS
from lasro.training.prompts import read_prompts
from lasro_client.run.base_sample_rewards import read_base_rewards
from lasro_client.run.folder import RunFolder
from lasro_surrogate_trainer.store import RunStore

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))
MINIMAL = 'name = "x"\n[prompts]\ntrain = "t.txt"\nheld_out = "h.txt"\n[[rewards]]\nname = "r"\n'


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path


def test_there_are_shipped_configurations() -> None:
    """Guards against the test below passing over an empty folder."""
    shipped = {path.name for path in CONFIGS}
    demo = {"demo.toml", "demo-stage1.toml", "demo-warm-up.toml", "demo-surrogate.toml"}
    recipes = {"ssd-1b-image-reward", "sdxl-turbo-vlm-judge", "lcm-sdxl-hps-v2", "dreamshaper-pick-score"}
    assert demo | {"guarded-shapes.toml"} | {f"{recipe}.toml" for recipe in recipes} <= shipped


def test_the_demos_labels_are_of_its_reward_and_its_training_prompts() -> None:
    """Guards against base-sample rewards of other rewards, and of prompts that the demo is judged on."""
    config = load_config(ROOT / "configs" / "demo.toml")
    path = config.train.initial_base_rewards
    assert path is not None
    groups = read_base_rewards(path, config.train.carried_groups, set(config.weights), config.train.carried_seeds)
    assert len(groups) == config.train.carried_groups
    assert {group.group.prompt for group in groups} <= {p.text for p in read_prompts(config.prompts.train)}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    """Guards against a renamed setting or prompt file leaving a shipped configuration behind."""
    config = load_config(path)
    train, held_out = config.prompts.train, config.prompts.held_out
    if isinstance(train, DatasetSettings) or isinstance(held_out, DatasetSettings):
        return  # of the hub: see the next test
    assert len(read_prompts(held_out)) >= config.evaluation.prompts
    assert not {p.text for p in read_prompts(train)} & {p.text for p in read_prompts(held_out)}


@pytest.mark.parametrize("name", ["demo", "demo-warm-up", "guarded-shapes"])
def test_what_was_tuned_does_not_follow_the_defaults(name: str) -> None:
    """Bug: the demo's warm-up made four updates a round in place of its one once that was the default."""
    train = load_config(ROOT / "configs" / f"{name}.toml").train
    assert {"generator_steps", "batch_size", "learning_rate", "surrogate_steps"} <= train.model_fields_set


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_data_sets_of_shipped_configurations_are_known_and_disjoint(path: Path) -> None:
    """Guards against a recipe that names a data set nobody looked up, or measures on what it is trained on."""
    prompts = load_config(path).prompts
    found = [each for each in (prompts.train, prompts.held_out, prompts.drift) if isinstance(each, DatasetSettings)]
    assert all(each.dataset in KNOWN_DATASETS for each in found)
    train, held_out = prompts.train, prompts.held_out
    if not isinstance(train, DatasetSettings) or not isinstance(held_out, DatasetSettings):
        return
    same = [(each.dataset, each.subset, each.split, each.where, each.shuffle) for each in (train, held_out)]
    assert same[0] != same[1] or (held_out.limit is not None and train.skip >= held_out.skip + held_out.limit)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_rewards_that_shipped_configurations_serve_are_there(path: Path) -> None:
    """Bug: a recipe named a function that was renamed, and failed after the model was loaded."""
    for reward in load_config(path).rewards:
        if reward.serve is not None:
            module, _, function = reward.serve.partition(":")
            assert callable(getattr(importlib.import_module(module), function))


def test_the_guarded_demo_is_the_demo_but_for_its_guard() -> None:
    """Bug: it was called the demo with a guard, and had the rounds, rates and batches of one long before."""
    demo, guarded = (
        load_config(ROOT / f"configs/{name}.toml").model_dump(mode="json") for name in ("demo", "guarded-shapes")
    )
    own = ["carried_groups", "carried_seeds", "initial_base_rewards", "warmup_rounds"]  # stage 1 never saw the guard
    expected = ["budget.max_minutes", "name", "rewards", *(f"train.{name}" for name in own)]
    assert differing_keys(demo, guarded) == expected


def test_groups_that_the_reward_api_would_refuse_are_refused_first(minimal: Path) -> None:
    """Bug: a run starts, draws a round, and ends by an error of the service about the length of a list."""
    assert load_config(minimal, ["train.seeds_per_prompt=256"]).train.second_step_draws == 1
    too_many = ["train.seeds_per_prompt=256", "train.second_step_draws=2"]
    with pytest.raises(ConfigError, match="got 1536 samples a group, expected at most 1024; lower it, reference_seeds"):
        load_config(minimal, too_many)
    assert load_config(minimal, [*too_many, "train.reference_seeds=8"]).train.second_step_draws == 2


def test_a_stage_one_with_nothing_to_learn_from_is_refused(minimal: Path) -> None:
    """Guards against a surrogate file that no sample was shown to."""
    with pytest.raises(ConfigError, match="rounds: got 0 without initial_samples"):
        load_config(minimal, ["pretrain.rounds=0"])
    runs = load_config(minimal, ["pretrain.rounds=0", "pretrain.initial_samples=['runs/one']"]).pretrain.initial_samples
    assert runs == (minimal.parent / "runs" / "one",), "paths are taken from the file's folder"


def test_every_setting_is_documented() -> None:
    """Guards against a setting whose meaning and unit stand nowhere."""
    pending, seen = [RunSettings, SurrogateRun], set()
    while pending:
        model = pending.pop()
        seen.add(model)
        for name, field in model.model_fields.items():
            kinds = list(settings_in(field.annotation))
            pending += [kind for kind in kinds if kind not in seen]
            if not kinds:
                assert field.description, f"{model.__name__}.{name} has no doc line"


def settings_in(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for part in get_args(annotation):
        yield from settings_in(part)


@pytest.mark.parametrize("value", ["0", "-0.1", "3", '"far"', "nan", "true", "[0.4]"])
def test_a_drift_budget_that_is_none_is_refused_in_one_sentence(minimal: Path, value: str) -> None:
    """Bug: 0 was refused twice in one line, true was 1, and for text nothing said that "none" is a value."""
    wanted = 'Expected a number above 0, such as 0\\.1 .hardly visible. to 1, and at most 2, or "none" for no limit$'
    got = "" if value == "[0.4]" else "got "
    with pytest.raises(ConfigError, match=rf"run\.toml: train\.drift_budget: {got}.*{wanted}"):
        load_config(minimal, [f"train.drift_budget={value}"])
    text = minimal.read_text()
    minimal.write_text(f"{text}\n[train]\ndrift_budget = {value}\n")
    with pytest.raises(ConfigError, match=rf"train\.drift_budget: {got}.*{wanted}"):
        load_config(minimal)


@pytest.mark.parametrize(("value", "budget"), [("0.1", 0.1), ("2", 2.0), ("none", None), ('"none"', None)])
def test_a_drift_budget_is_a_number_or_none(minimal: Path, value: str, budget: float | None) -> None:
    """Guards against a limit of the range that is refused, and against "none" read as text."""
    assert load_config(minimal, [f"train.drift_budget={value}"]).train.drift_budget == budget


def test_an_unknown_key_is_refused(minimal: Path) -> None:
    """Guards against a typo that silently leaves the default in force."""
    with pytest.raises(ConfigError, match=r"train\.ruonds: no such setting; did you mean train\.rounds\?$"):
        load_config(minimal, ["train.ruonds=3"])
    with pytest.raises(ConfigError, match=r"rewards\.0\.wheight: no such setting; did you mean rewards\.0\.weight\?"):
        load_config(minimal, ['rewards=[{name="r",wheight=2.0}]'])
    with pytest.raises(
        ConfigError, match=r"budget\.xyz: no such setting; expected one of max_minutes, max_reward_calls$"
    ):
        load_config(minimal, ["budget.xyz=3"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.rounds=0", r"train\.rounds: got 0\. Input should be greater than or equal to 1$"),
        ("train.mode=weight", r"train\.mode: got 'weight'\. Input should be 'gradient' or 'weights'$"),
        ("train.learning_rate=nan", "train.learning_rate"),
        ("surrogate.trunk=half", "surrogate.trunk"),
        ('method.regulariser="lcm"', "needs both teacher and teacher_latents"),
        ('rewards=[{name="r"},{name="r"}]', r"run\.toml: rewards: got \['r', 'r'\], expected each name once$"),
        ('rewards=[{name="r",floor=nan}]', "rewards.0.floor"),
        ('services.reward_api="http://x"', "give both"),
        (
            'services={reward_api="http://x",surrogate_trainer="http://y",in_process_trainer=true}',
            "services: in_process_trainer: got true with the URL",
        ),
        ("name.x=1", "not a table"),
        ("rounds", "expected KEY=VALUE"),
    ],
)
def test_wrong_values_are_named(minimal: Path, setting: str, message: str) -> None:
    """Guards against a value out of range reaching the run."""
    with pytest.raises(ConfigError, match=message):
        load_config(minimal, [setting])


def test_files_that_are_not_toml_are_named(tmp_path: Path) -> None:
    """Guards against a traceback from the TOML parser."""
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ConfigError, match=r"bad\.toml: cannot be read as TOML"):
        load_config(tmp_path / "bad.toml")
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(tmp_path / "absent.toml")


def test_paths_are_taken_from_the_folder_of_the_file(minimal: Path) -> None:
    """Guards against a configuration that works from one working directory only."""
    config = load_config(minimal, ["model.path=./m", "train.initial_surrogate=s.safetensors"])
    assert config.prompts.train == minimal.parent / "t.txt"
    assert config.model.path == str(minimal.parent / "m")
    assert config.train.initial_surrogate == str(minimal.parent / "s.safetensors")
    assert load_config(minimal).model.path == "bundled"


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2)),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2)),
)
def test_differing_keys_are_exactly_those_that_differ(old: dict[str, int], new: dict[str, int]) -> None:
    """Guards against a changed setting slipping through, or the same one being blamed."""
    expected = sorted(f"t.{key}" for key in "abc" if old.get(key) != new.get(key))
    assert differing_keys({"t": old}, {"t": new}) == expected


def test_rewards_of_a_run_make_its_objective(minimal: Path) -> None:
    """Guards against a floor, weight or combination of the file that never reaches the totals."""
    rewards = 'rewards=[{name="a",weight=2,normalise=true},{name="g",weight=0,floor=0.3},{name="logged",weight=0}]'
    found = load_config(minimal, [rewards, "objective.combine=minimum"]).reward_objective
    weights = {"a": 2.0, "g": 0.0, "logged": 0.0}
    assert found == RewardObjective(weights, "minimum", floors={"g": 0.3}, normalised=["a"])
    assert found.required_rewards == ["a", "g"]
    with pytest.raises(ConfigError, match="a: a normalised reward falls on both sides of 0"):
        load_config(minimal, [rewards, "objective.combine=product"])


def test_a_run_of_before_there_were_guards_is_taken_up(tmp_path: Path) -> None:
    """Guards against a trainer that after an upgrade no longer reads the runs on its disk."""
    store = RunStore(tmp_path, "old", keep_versions=4, keep_versions_s=0)
    store.folder.mkdir(parents=True)
    (store.folder / "run.json").write_text('{"weights": {"r": 1.0}}')
    config = store.find_config()
    assert config is not None
    assert config.reward_objective == RewardObjective({"r": 1.0}, "sum", {}, ())
    with pytest.raises(ValidationError, match="expected only rewards of the objective"):
        SurrogateRun(weights={"r": 1.0}, floors={"other": 0.5})


def test_a_run_that_never_began_takes_the_mended_configuration(minimal: Path, tmp_path: Path) -> None:
    """Bug: a run that found no model left its configuration, and with the path put right it was refused for that."""
    RunFolder(tmp_path / "run", load_config(minimal, ["model.path=/no/such/model"]), "train").open()
    RunFolder(tmp_path / "run", load_config(minimal), "train").open()
    (tmp_path / "run" / "log.jsonl").touch()
    RunFolder(tmp_path / "run", load_config(minimal), "train").open()
    with pytest.raises(ConflictError, match=r"differing in model\.path"):
        RunFolder(tmp_path / "run", load_config(minimal, ["model.path=/no/such/model"]), "train").open()


def test_services_may_move_but_nothing_else(minimal: Path, tmp_path: Path) -> None:
    """Guards against a run that cannot be resumed because its services have new addresses."""
    RunFolder(tmp_path / "run", load_config(minimal), "train").open()
    moved = load_config(minimal, ['services.reward_api="http://a"', 'services.surrogate_trainer="http://b"'])
    RunFolder(tmp_path / "run", moved, "train").open()
    (tmp_path / "run" / "log.jsonl").touch()
    with pytest.raises(ConflictError, match=r"differing in lora\.rank"):
        RunFolder(tmp_path / "run", load_config(minimal, ["lora.rank=3"]), "train").open()
    made = json.loads((tmp_path / "run" / "config.json").read_text())
    del made["objective"]["combine"], made["rewards"][0]["floor"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(made))
    RunFolder(tmp_path / "run", load_config(minimal), "train").open()
    with pytest.raises(ConflictError, match=r"differing in objective\.combine, rewards"):
        RunFolder(
            tmp_path / "run",
            load_config(minimal, ["objective.combine=product", 'rewards=[{name="r",floor=0.5}]']),
            "train",
        ).open()
    with pytest.raises(ConflictError, match="differing in stage"):
        RunFolder(tmp_path / "run", load_config(minimal), "pretrain").open()


def test_every_kind_of_path_is_taken_from_the_folder_of_the_file(minimal: Path) -> None:
    """Bug: `model.unet`, the teacher and "models/x" were taken from the working directory, against the docs."""
    (minimal.parent / "models" / "x").mkdir(parents=True)
    keys = ("model.path", "model.unet", "method.teacher")
    config = load_config(minimal, [*(f"{key}=models/x" for key in keys), "method.teacher_latents=z.safetensors"])
    beside = str(minimal.parent / "models" / "x")
    assert isinstance(config.method, LasroSettings)
    assert (config.model.path, config.model.unet, config.method.teacher) == (beside, beside, beside)
    assert config.method.teacher_latents == minimal.parent / "z.safetensors"
    assert config.rewards[0].import_path == minimal.parent
    assert load_config(minimal, ["model.path=owner/model"]).model.path == "owner/model", "a hub id"


def test_names_of_the_last_release_are_read_with_a_warning(
    minimal: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Guards against a configuration or a run of the last release that the next one refuses."""
    old = {
        "pretrain.beside_seeds=3": "beside_seeds is now reference_seeds",
        "pretrain.scout_after=7": "scout_after is now probe_after",
        "pretrain.scout_rounds=8": "scout_rounds is now probe_rounds",
        "train.initial_labels=l.jsonl": "initial_labels is now initial_base_rewards",
        "surrogate.rank_within_stage=true": "rank_within_stage is now rank_within_num_steps",
        "objective.regulariser_weight=2.5": "objective.regulariser_weight is now method.regulariser_weight",
    }
    config = load_config(minimal, list(old))
    assert len(caplog.messages) == len(old)
    assert all(any(text in line for line in caplog.messages) for text in old.values())
    assert (config.pretrain.reference_seeds, config.pretrain.probe_after, config.pretrain.probe_rounds) == (3, 7, 8)
    assert config.train.initial_base_rewards == minimal.parent / "l.jsonl"
    assert config.surrogate.rank_within_num_steps
    assert config.method.regulariser_weight == 2.5
    with pytest.raises(ConfigError, match=r"objective\.score_clip: got it together with method\.score_clip"):
        load_config(minimal, ["objective.score_clip=2", "method.score_clip=2"])
    RunFolder(tmp_path / "run", config, "train").open()
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    written["objective"]["score_clip"] = written["method"].pop("score_clip")
    written["lora"]["targets"] = list(UNET_TARGETS)
    written["surrogate"]["rank_within_stage"] = written["surrogate"].pop("rank_within_num_steps")
    (tmp_path / "run" / "config.json").write_text(json.dumps(written))
    (tmp_path / "run" / "log.jsonl").touch()
    caplog.clear()
    RunFolder(tmp_path / "run", config, "train").open()
    assert not caplog.messages, "what an earlier run wrote is nothing its user can change"


def test_an_unknown_method_is_told_with_the_known_ones(minimal: Path) -> None:
    """Guards against pydantic's account of a union in place of the names that there are."""
    with pytest.raises(ConfigError, match=r"method\.type: got 'ppo', expected one of lasro, true-gradient, rlcm, "):
        load_config(minimal, ["method.type=ppo"])
    with pytest.raises(ConfigError, match=r"method\.score_clip: no such setting; expected one of .*two_step_weight"):
        load_config(minimal, ["method.type=true-gradient", "method.score_clip=2"])
    with pytest.raises(ConfigError, match=r"method\.score_klip: no such setting; did you mean method\.score_clip\?"):
        load_config(minimal, ["method.score_klip=2"])


def test_a_reward_is_registered_as_the_file_says(minimal: Path) -> None:
    """Bug: a served reward of 1.5 s an image timed out at 30 s a call, and no setting of the file raised that."""
    given = 'rewards=[{name="r",serve="m:f",timeout_s=120,max_batch=8,concurrency=1,range=[0,1],repeats=2,cache=false}]'
    (reward,) = load_config(minimal, [given]).rewards
    registered = {"timeout_s": 120, "max_batch": 8, "concurrency": 1, "range": (0, 1), "repeats": 2, "cache": False}
    assert reward.registered == registered
    assert load_config(minimal).rewards[0].registered == {}
    for wrong in ("timeout_s=0", "timeout_s=601", "max_batch=0", "concurrency=65", "repeats=33", "range=[1,1]"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            load_config(minimal, [f'rewards=[{{name="r",{wrong}}}]'])


def test_a_run_is_resumed_with_another_timeout(minimal: Path, tmp_path: Path) -> None:
    """Guards against a run that ended because its reward was slow, and cannot go on with more time for it."""
    RunFolder(tmp_path / "run", load_config(minimal), "train").open()
    (tmp_path / "run" / "log.jsonl").touch()
    patient = ['rewards=[{name="r",timeout_s=120,max_batch=4}]', "services.reward_wait_s=600"]
    RunFolder(tmp_path / "run", load_config(minimal, [*patient, "health.max_unranked_rounds=20"]), "train").open()
    with pytest.raises(ConflictError, match="differing in rewards"):
        RunFolder(tmp_path / "run", load_config(minimal, ['rewards=[{name="r",weight=2}]']), "train").open()


def test_a_margin_of_before_there_were_units_stays_a_difference(
    minimal: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against a run that after an upgrade ranks by fifty times less, or more, without a word."""
    store = RunStore(tmp_path, "old", keep_versions=4, keep_versions_s=0)
    for number, config in enumerate([load_config(minimal), load_config(minimal, ["surrogate.tie_margin=0.1"])]):
        assert config.surrogate.tie_margin_unit == "spread"
        folder = RunFolder(tmp_path / f"{number}", config, "train")
        folder.open()
        stored = json.loads((folder.path / "config.json").read_text())
        del stored["surrogate"]["tie_margin_unit"]
        (folder.path / "config.json").write_text(json.dumps(stored))
        (folder.path / "log.jsonl").touch()
        with pytest.raises(ConflictError, match=r"differing in surrogate\.tie_margin_unit"):
            folder.open()
        absolute = config.surrogate.model_copy(update={"tie_margin_unit": "absolute"})
        RunFolder(folder.path, config.model_copy(update={"surrogate": absolute}), "train").open()
    assert len(caplog.records) == 1, "said of a margin that is set, and of no other"
    stored = load_config(minimal).surrogate_run.model_dump(mode="json")
    store.folder.mkdir(parents=True)
    for surrogate, expected in (({}, "spread"), ({"tie_margin_unit": "absolute"}, "absolute")):
        body = stored | {"surrogate": stored["surrogate"] | surrogate}
        (store.folder / "run.json").write_text(json.dumps(body))
        assert store.find_config() == SurrogateRun.model_validate(body)
        assert body["surrogate"]["tie_margin_unit"] == expected
    del stored["surrogate"]["tie_margin_unit"]
    (store.folder / "run.json").write_text(json.dumps(stored))
    found = store.find_config()
    assert found is not None
    assert found.surrogate.tie_margin_unit == "absolute"


def test_a_trainer_reads_sizes_of_an_image() -> None:
    """Bug: every run with `model.original_size` was refused by its trainer, whose strict reader saw a list."""
    run = SurrogateRun(model=ModelSettings(original_size=(64, 48), crops_top_left=(4, 2)), weights={"any": 1.0})
    assert SurrogateRun.model_validate_json(run.model_dump_json(), strict=True) == run
