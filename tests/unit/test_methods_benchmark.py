"""The benchmark of methods: its plan, what is skipped and what goes on, and its page; without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.frontier.held_out import PromptSplit
from benchmarks.frontier.run import write_run
from benchmarks.methods.best_of import images_each
from benchmarks.methods.measure import BASE_FOLDER, save_strips
from benchmarks.methods.plan import REWARDS, SCALES, TUNING_SEED, Cell, Run, plan_of
from benchmarks.methods.prompts import HELD_OUT, PROMPT_SETS, TUNING, UNSEEN, UNSEEN_PAIRS, names_unseen
from benchmarks.methods.report.page import write_page
from benchmarks.methods.report.tables import verdict
from benchmarks.methods.results import ABOUT_FILE, RUN_FOLDER, Result, best_rate, find_results, spread_of, write_result
from benchmarks.methods.runner import do_cells, keep_scale
from benchmarks.methods.variants import ABLATIONS, COLLAPSE, FILES, METHODS, VARIANTS, Variant
from lasro.config import RunSettings, differing_keys, load_config
from lasro.config.method import RewardGuidedLcdSettings
from lasro.demo.shapes import COLORS, SHAPES
from lasro.errors import ConfigError
from lasro.methods.registry import METHODS as REGISTRY
from lasro.methods.registry import method_of
from lasro.reward_function import load_reward
from lasro_client.run.least_budget import check_calls

FULL, QUICK = SCALES["full"], SCALES["quick"]
TRAINED = [variant for variant in VARIANTS.values() if variant.trains]


def loaded(tmp_path: Path, run: Run) -> RunSettings:
    """Its settings as `lasro train` reads them."""
    sets = PROMPT_SETS[run.reward.prompts]()
    folder = tmp_path / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    toml = write_run(folder, run.reward.name, run.reward.serve, PromptSplit(sets.train, sets.tuning, noises=2))
    return load_config(toml, run.settings)


def settings_of(tmp_path: Path, variant: Variant) -> RunSettings:
    reward = (variant.rewards or ("jpeg-compressibility",))[0]
    return loaded(tmp_path, Run(FULL, REWARDS[reward], variant, 0, 1e-3))


def test_every_method_type_is_in_the_plan() -> None:
    """Guards against a method that is added and never compared."""
    assert {variant.settings["method.type"] for variant in METHODS} == set(REGISTRY)
    planned = {cell.variant.name for cell in plan_of(FULL)}
    assert planned == set(VARIANTS)


@pytest.mark.parametrize("variant", TRAINED, ids=lambda one: one.name)
def test_settings_of_each_variant_load_and_say_what_they_are(tmp_path: Path, variant: Variant) -> None:
    """Guards against a setting that was renamed, or is default so that an ablation changes nothing."""
    config = settings_of(tmp_path, variant)
    assert config.budget.max_reward_calls == FULL.calls[config.rewards[0].name]
    assert config.train.learning_rate == 1e-3
    plain = settings_of(tmp_path, replace(VARIANTS["lasro"], name=variant.name, rewards=variant.rewards))
    changed = set(differing_keys(plain.model_dump(mode="json"), config.model_dump(mode="json")))
    told = {key for key in variant.settings if key != "method.type"}
    if variant in (*ABLATIONS, *COLLAPSE):
        assert {key if key.count(".") == 1 else key.rsplit(".", 1)[0] for key in changed} >= told
        assert len(changed) == len(told)


def test_files_that_settings_name_are_in_the_folder_of_the_benchmark(tmp_path: Path) -> None:
    """Guards against a path that is right from another folder than the run's."""
    method = settings_of(tmp_path, VARIANTS["reward-guided-lcd"]).method
    assert isinstance(method, RewardGuidedLcdSettings)
    assert method.teacher_latents == tmp_path.resolve() / Path(FILES).name / "teacher-latents.safetensors"
    backbone = settings_of(tmp_path, VARIANTS["lasro-random-trunk"]).surrogate.backbone
    assert backbone is not None
    assert Path(backbone.path) == tmp_path.resolve() / "files" / "random-trunk"


@pytest.mark.parametrize("scale", ["quick", "tiny"])
def test_runs_of_small_scales_can_begin(tmp_path: Path, scale: str) -> None:
    """Guards against fewer reward calls than a run from nothing is allowed to start with."""
    for cell in plan_of(SCALES[scale]):
        if cell.variant.trains:
            config = loaded(tmp_path, cell.final(1e-3)[0])
            if method_of(config).needs_surrogate:
                check_calls(config, {cell.reward.name: 1})


def test_rewards_of_the_plan_are_served() -> None:
    """Guards against a reward that has moved."""
    for reward in REWARDS.values():
        assert load_reward(reward.serve)


def test_prompts_of_different_purposes_are_different() -> None:
    """Guards against a rate chosen, or a gain measured, on prompts that were trained on."""
    for make in PROMPT_SETS.values():
        sets = make()
        parts = [sets.train, sets.tuning, *sets.measured.values()]
        texts = [{prompt.text for prompt in part} for part in parts]
        assert all(texts)
        assert sum(map(len, texts)) == len(set().union(*texts))


def test_unseen_pairs_are_new_and_their_parts_are_not() -> None:
    """Guards against pairs that are trained on after all, and colours or shapes that nobody trained on."""
    sets = PROMPT_SETS["shapes"]()
    assert not any(map(names_unseen, [*sets.train, *sets.tuning, *sets.measured[HELD_OUT]]))
    assert all(map(names_unseen, sets.measured[UNSEEN]))
    assert len(UNSEEN_PAIRS) == len(SHAPES)
    words = {word for prompt in sets.train for word in prompt.text.split()}
    assert words >= {*COLORS, *SHAPES}


def test_best_of_n_spends_as_many_calls() -> None:
    """Guards against a comparison with more images than a run has had scored."""
    assert images_each(400, 16) == 12
    assert images_each(10, 48) == 2


def fake_result(run: Run, gain: float = 0.1) -> Result:
    """As the executor returns it."""
    one = {
        "gain": {"mean": gain, "sem": 0.01, "n": 32, "failed": 0},
        "drift": {"ratio": {"mean": 0.4, "sem": 0.02}},
        "diversity": {"mean": 0.9, "sem": 0.05},
    }
    sets = [TUNING] if run.is_tuning else [HELD_OUT, UNSEEN]
    measured = {name: {"1": one, "2": one} for name in sets}
    return {"status": 0, "minutes": 2.0, "ended": "all rounds done", "calls": {"train": 390}, "measured": measured}


def gains_by_rate(run: Run) -> Result:
    """The middle rate of three is best, and a reward is easier for LaSRO."""
    middle = run.variant.rates[1] if len(run.variant.rates) == 3 else run.learning_rate
    better = 0.1 if run.learning_rate == middle else 0.02
    return fake_result(run, better * (3 if run.variant.name == "lasro" else 1) + 0.001 * (run.seed % 10))


def cells(*names: str, reward: str = "jpeg-compressibility") -> list[Cell]:
    return [Cell(FULL, REWARDS[reward], VARIANTS[name]) for name in names]


def test_rates_are_tuned_first_and_ablations_take_that_of_lasro(tmp_path: Path) -> None:
    """Guards against final runs at a rate that no grid chose, and seeds that chose it among those that count."""
    done: list[Run] = []

    def execute(run: Run) -> Result:
        done.append(run)
        return gains_by_rate(run)

    assert do_cells(cells("lasro", "rlcm"), tmp_path, execute, lambda _: None) == 0
    assert do_cells(cells("lasro-no-ema", "best-of-n"), tmp_path, execute, lambda _: None) == 0  # by another command
    tuning = [run for run in done if run.is_tuning]
    assert [(run.variant.name, run.learning_rate) for run in tuning] == [
        ("lasro", 1e-4), ("lasro", 3e-4), ("lasro", 1e-3), ("rlcm", 3e-4), ("rlcm", 1e-3), ("rlcm", 3e-3),
    ]  # fmt: skip
    finals = {(run.variant.name, run.learning_rate) for run in done if not run.is_tuning}
    assert finals == {("lasro", 3e-4), ("rlcm", 1e-3), ("lasro-no-ema", 3e-4), ("best-of-n", None)}
    assert sorted({run.seed for run in done}) == [0, 1, 2, TUNING_SEED]
    assert len({run.folder for run in done}) == len(done) == 6 + 4 * 3


def test_finished_runs_are_skipped_and_failed_ones_tried_again(tmp_path: Path) -> None:
    """Guards against a night's work done twice, a failure that ends the bench, and one that is never mended."""
    broken = {"status": 2, "minutes": 0.1, "ended": "reward: connection refused", "calls": {}}
    said: list[str] = []

    def execute(run: Run) -> Result:
        return broken if (run.variant.name, run.seed) == ("rlcm", 1) else fake_result(run)

    assert do_cells(cells("lasro", "rlcm"), tmp_path, execute, said.append) == 1
    assert len(said) == 12
    assert any("failed, status 2: reward: connection refused" in line for line in said)
    assert "0 left" not in said[-1]
    assert "; 6 left, about 12 min" in said[5]
    again: list[Path] = []

    def count(run: Run) -> Result:
        again.append(run.folder)
        return fake_result(run)

    assert do_cells(cells("lasro", "rlcm"), tmp_path, count, said.append) == 0
    assert again == [Path("jpeg-compressibility/rlcm/lr-0.0003/seed-1")]


def test_what_is_interrupted_leaves_the_finished_runs(tmp_path: Path) -> None:
    """Guards against Ctrl-C that is taken for a failed run, or loses those before it."""

    def execute(run: Run) -> Result:
        if run.learning_rate == 1e-3:
            raise KeyboardInterrupt
        return fake_result(run)

    with pytest.raises(KeyboardInterrupt):
        do_cells(cells("lasro"), tmp_path, execute, lambda _: None)
    assert len(find_results(tmp_path)) == 2


def test_without_a_rate_of_lasro_its_ablations_are_left_out(tmp_path: Path) -> None:
    """Guards against ablations at a rate that is not that of what they are compared with."""
    said: list[str] = []
    assert do_cells(cells("lasro-no-ema"), tmp_path, fake_result, said.append) == 1
    assert "left out" in said[0]
    assert not find_results(tmp_path)


def test_a_folder_holds_runs_of_one_scale(tmp_path: Path) -> None:
    """Guards against runs of different budgets in one table."""
    keep_scale(QUICK, tmp_path)
    keep_scale(QUICK, tmp_path)
    with pytest.raises(ConfigError, match="another folder"):
        keep_scale(FULL, tmp_path)


def test_the_best_rate_is_that_of_both_steps_together() -> None:
    """Guards against a rate chosen by a run that counts, or by one of a failed reward."""

    def result(rate: float, one: float | None, two: float | None, tuning: bool = True) -> Result:
        measured = {str(n): {"gain": {"mean": value, "sem": None}} for n, value in ((1, one), (2, two))}
        return {"learning_rate": rate, "tuning": tuning, "measured": {TUNING: measured}}

    results = [result(1, 0.1, 0.4), result(2, 0.3, 0.1), result(3, 9, 9, tuning=False), result(4, None, None)]
    assert best_rate(results) == 1
    assert best_rate([]) is None


def test_spread_is_over_seeds() -> None:
    """Guards against an error of the prompts told as one of the seeds."""
    run = Run(FULL, REWARDS["brightness"], VARIANTS["lasro"], 0, 1e-3)
    three = [fake_result(run, gain) for gain in (0.1, 0.2, 0.3)]
    found = spread_of(three, HELD_OUT, 1, "gain")
    assert found == pytest.approx((0.2, 0.1, 3))
    assert spread_of(three[:1], HELD_OUT, 1, "gain") == pytest.approx((0.1, 0.01, 1))
    assert spread_of(three, "emoji", 1, "gain") is None


def write_bench(out: Path, scale: str, execute: Callable[[Run], Result]) -> None:
    """A folder of runs with logs and pictures, as the runner leaves it."""
    plan = list(plan_of(SCALES[scale]))
    assert do_cells(plan, out, execute, lambda _: None) == 0
    keep_scale(SCALES[scale], out)
    strip = {steps: [np.full((16, 16, 3), 40 * i + 20, np.uint8) for i in range(4)] for steps in (1, 2)}
    for cell in plan:
        save_strips(out / cell.reward.name / BASE_FOLDER, strip)
        for run in cell.final(cell.untuned_rate()) if cell.variant.trains else []:
            save_strips(out / run.folder, strip)
            (out / run.folder / RUN_FOLDER).mkdir()
            log = "".join(json.dumps(line(round)) + "\n" for round in range(6))
            (out / run.folder / RUN_FOLDER / "log.jsonl").write_text(log)


def line(round: int) -> dict[str, Any]:
    """Of log.jsonl; the first round has no generator that moved."""
    both = None if round == 0 else 0.01 * round
    by_steps = {"one_step": both, "two_step": both}
    calls, seconds = {"reward_calls": 50 * (round + 1)}, {"elapsed_s": 60.0 * round}
    return {"stage": "train", "round": round, "gain": by_steps, "distance": by_steps, **calls, **seconds}


def test_the_page_says_first_that_its_runs_are_quick_ones(tmp_path: Path) -> None:
    """Guards against a table of a test run that is read as a result, and curves, pictures or failures left out."""
    out, docs = tmp_path / "runs", tmp_path / "docs"
    write_bench(out, "quick", gains_by_rate)
    unlearned = Run(QUICK, REWARDS["brightness"], VARIANTS["lasro"], 0, 3e-4)
    write_result(out, unlearned, gains_by_rate(unlearned) | {"status": 1, "ended": "the reward looks like noise"})
    failing = Run(QUICK, REWARDS["brightness"], VARIANTS["gors"], 7, 1e-3)
    write_result(out, failing, {"status": 2, "minutes": 0.1, "ended": "disk full", "calls": {}})
    page, *files = write_page(out, docs)
    text = page.read_text()
    assert text.splitlines()[2].startswith("> **These are the quick runs.** One seed;")
    for cell in plan_of(QUICK):
        assert f"`{cell.variant.name}`" in text
    assert "Two steps: LaSRO +0.3000 ± 0.0100 at drift 0.40 ± 0.02, the best of the others" in text
    assert "- `lasro`, seed 0: the reward looks like noise" in text
    assert "3.0 times, at least twice as much." in text
    assert "- brightness, `gors`, seed 7: failed, status 2: disk full" in text
    assert str(tmp_path) in text.split("## Again")[1]
    assert all(f"results/{file.name}" in text and file.exists() for file in files)
    drawn = ElementTree.fromstring((docs / "results" / "brightness-curves.svg").read_text())
    paths = [one for one in drawn.iter() if one.tag.endswith("path")]
    assert len(paths) == 4 * 2 * 3  # methods that train, steps, axes
    assert {file.suffix for file in files} == {".svg", ".webp"}
    assert {"collapse.svg", "collapse-pictures.webp"} <= {file.name for file in files}


def test_a_full_page_shows_grids_and_ablations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a rate without the grid that it was chosen by, and a warning where there is nothing to warn of."""
    out, docs = tmp_path / "runs", tmp_path / "docs"
    assert do_cells(cells("lasro", "rlcm", "lasro-no-ema"), out, gains_by_rate, lambda _: None) == 0
    keep_scale(FULL, out)
    text = write_page(out, docs)[0].read_text()
    assert "These are the" not in text
    assert "**Not all runs are done.** 15 of " in text
    assert "**0.0003: +0.3000**" in text
    assert "| `lasro-no-ema`: last weights in place of averaged ones | `train.ema` | +0.1010 ± 0.0010 |" in text


def test_the_verdict_is_plain_where_nothing_was_gained() -> None:
    """Guards against a ratio of negative gains that reads like a success."""

    def one(name: str, gain: float) -> Result:
        run = Run(FULL, REWARDS["brightness"], VARIANTS[name], 0, 1e-3)
        return {"reward": "brightness", "variant": name, "tuning": False, **fake_result(run, gain)}

    assert verdict([one("lasro", -0.1), one("rlcm", -0.2)], "brightness")[0].endswith("; neither gained anything.")
    assert "not twice as much" in verdict([one("lasro", 0.15), one("rlcm", 0.1)], "brightness")[1]
    limit = verdict([one("lasro", 0.3), one("rlcm", 0.1), one("true-gradient", 0.9)], "brightness")
    assert "`rlcm`" in limit[0]


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    """Guards against an empty page in place of a message."""
    with pytest.raises(ConfigError, match=ABOUT_FILE):
        write_page(tmp_path, tmp_path)
