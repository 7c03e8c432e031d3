"""report.html from run folders at every stage of a run."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from lasro.errors import NotFoundError, RewardError
from lasro.files import write_atomically, write_json
from lasro.images import png_bytes
from lasro_client.evaluation.result import Evaluation, save_evaluation, summary_table
from lasro_client.report.charts import Series, chart, moving_average, nice_ticks, tick_label
from lasro_client.report.curves import curves
from lasro_client.report.images import EDGE, data_uri, pick, random_pick, spread
from lasro_client.report.page import ReportWriter, duration, number, signed, write_report
from lasro_client.report.run_data import points, read_run, seconds_left
from lasro_client.run.observer import Observer, RunInfo
from lasro_client.run.round_record import RoundRecord
from lasro_client.run.stopped import stop_recorded

NASTY = 'a <b>red</b> "circle" & <script>alert(1)</script>'
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and collects texts, addresses and images."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.images, self.texts = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag == "img":
            self.images.append(attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def line(round, **more):
    record = {
        "stage": "train", "round": round, "rounds": 20, "elapsed_s": 30.0 + 6 * round,
        "reward": {"binding": {"one_step": 0.2 + 0.01 * round, "two_step": 0.5}},
        "total": {"one_step": 0.2, "two_step": 0.5}, "reference": {"one_step": 0.1, "two_step": 0.4},
        "gain": {"one_step": 0.1, "two_step": 0.1}, "drift": {"one_step": 0.2, "two_step": 0.1}, "trouble": None,
        "score": {"one_step": -1.0, "two_step": 0.3},
        "loss": -0.1, "regulariser": 1e-5, "grad_norm": 0.7, "bt_loss": 0.4, "pair_accuracy": 0.9,
        "fresh_pair_accuracy": 0.8, "held_out_pair_accuracy": None, "reward_gap": 0.2, "constant_groups": 0,
        "failed_samples": 0, "reward_calls": 48 * (round + 1), "policy_version": round, "surrogate_version": round,
    }  # fmt: skip
    return record | more


def draw(path, value, side=16):
    write_atomically(path, png_bytes(np.full((side, side, 3), value % 256, np.uint8)))


def evaluation(shift, prompts):
    scores = [None if i == 1 else 0.1 * i + shift for i in range(len(prompts))]
    return Evaluation(
        prompts=prompts,
        seed=1,
        rewards={"binding": {1: scores, 2: [0.5 + shift] * len(prompts)}},
        failures={"binding": {"timeout": 1}},
    )


STEPS = ["empty", "config", "before", "rounds", "progress", "after", "drift", "summary"]


def make_run(folder, until, prompts=(NASTY, "two", "three", "four")):
    """A run folder as it is when the step `until` has been written."""
    prompts = list(prompts)
    before, after = evaluation(0.0, prompts), evaluation(0.25, prompts)
    steps = STEPS[: STEPS.index(until) + 1]
    folder.mkdir(exist_ok=True)
    if "config" in steps:
        rewards = [{"name": "binding", "weight": 2.0}]
        write_json(folder / "config.json", {"name": "demo", "rewards": rewards, "note": "</pre><script>"})
    for name, scores in (("before", before), ("after", after)):
        if name in steps:
            save_evaluation(folder / "evaluation" / f"{name}.json", scores)
            for index in range(len(prompts)):
                draw(folder / f"evaluation/{name}/one/{index:05d}.png", 10 * index)
                draw(folder / f"evaluation/{name}/two/{index:05d}.png", 20 * index)
    if "rounds" in steps:
        lines = [json.dumps(line(round)) for round in range(10)]
        (folder / "log.jsonl").write_text("\n".join(lines) + '\n{"stage": "train", "rou')
    if "progress" in steps:
        write_json(folder / "progress" / "prompts.json", prompts[:2])
        draw(folder / "progress/00010/0.png", 1)
    if "drift" in steps:
        ratio = {"mean": 0.12, "sem": 0.01}
        write_json(folder / "drift.json", {"ratio": ratio, "mean_abs_255": 3.0, "seed_to_seed_255": 25.0, "n": 2})
        write_json(folder / "drift" / "prompts.json", [NASTY])
        draw(folder / "drift/before/00000.png", 1)
        draw(folder / "drift/after/00000.png", 2)
    if "summary" in steps:
        rows = summary_table(before, after)
        moved = {"distance": {"mean": 0.31, "sem": 0.02, "n": 4}, "seeds": {"mean": 0.62, "sem": None, "n": 4}}
        held_out = {"one_step": moved, "two_step": moved}
        summary = {"rewards": rows, "held_out_drift": held_out, "reward_calls": 480, "duration_s": 90}
        write_json(folder / "summary.json", summary)
    return folder


def test_the_report_tells_how_far_the_held_out_prompts_moved(tmp_path):
    """Guards both yardsticks of drift.json and summary.json, and the folders of earlier runs that have one."""
    folder = make_run(tmp_path / "run", "summary")
    text = Page(write_report(folder).read_text()).text
    assert "0.31 ± 0.02 0.62 4" in text
    assert "Drift 0.12 ± 0.01 in changes of seed" in text
    drift = {"distance": {"mean": 0.07, "sem": None}, "ratio": {"mean": None, "sem": None}}
    write_json(folder / "drift.json", drift | {"mean_abs_255": 3.0, "seed_to_seed_255": 0.0, "n": 2})
    assert "Drift 0.07 in changes of prompt, – in changes of seed" in Page(write_report(folder).read_text()).text
    summary = json.loads((folder / "summary.json").read_text())
    del summary["held_out_drift"]
    write_json(folder / "summary.json", summary)
    assert "How far these prompts moved" not in write_report(folder).read_text()


def frontier_of(folder):
    return next(one for one in curves(read_run(folder), "train") if one.title == "Gain against drift")


def test_gain_against_drift_ends_at_the_exported_adapter(tmp_path):
    """Guards against a budget and a line in changes of prompt that are drawn beside rounds in changes of seed."""
    folder = make_run(tmp_path / "run", "summary")
    old = frontier_of(folder)
    assert "changes of seed" in old.note
    assert "Two steps: gain 0.1 at drift 0.1 in the last rounds, gain 0.5 at drift 0.62" in old.svg
    points = [{"drift": x, "gain": 2 * x, "num_steps": 2} for x in (0.4, 0.2)]
    write_json(folder / "frontier.json", {"true_gradient": points})
    write_json(folder / "config.json", {"name": "demo", "train": {"drift_budget": 0.35}})
    new = frontier_of(folder)
    assert "changes of prompt" in new.note
    assert "budget, 0.35" in new.note
    assert "Two steps: gain 0.25 at drift 0.31 on held-out prompts" in new.svg, "no rounds in another unit"
    assert new.svg.count('class="tone2 limit"') == new.svg.count('class="budget"') == 1
    write_json(folder / "frontier.json", {"true_gradient": [{"drift": 0.1}, None]})
    assert "limit" not in frontier_of(folder).svg, "a broken file must not end the run"


def test_gain_against_drift_follows_the_rounds_that_measured_it(tmp_path):
    """Guards against a curve that is lost once rounds are measured in changes of prompt."""
    folder = make_run(tmp_path / "run", "rounds")
    lines = [json.dumps(line(i, distance={"one_step": 0.05 * i, "two_step": None})) for i in range(4)]
    (folder / "log.jsonl").write_text("\n".join(lines))
    found = frontier_of(folder)
    assert [one.label for one in found.series] == ["One step"]
    assert "changes of prompt" in found.note


def phased_lines():
    """Two rounds of ranking, two of a pilot that begins again, three of its second beginning, and two of training."""
    unmeasured = {key: {"one_step": None, "two_step": None} for key in ("gain", "reference", "drift", "score")}
    ranking = [line(i, phase="ranking", ranked_pairs=100 + 200 * i, **unmeasured) for i in range(2)]
    ranking[1] |= {"fresh_pair_accuracy": 0.9, "event": "the surrogate ranks 88% right; a pilot follows"}
    pilot = [line(i, phase="pilot", restarts=int(i > 3), drift_target=0.1) for i in range(2, 7)]
    pilot[1]["event"] = "the surrogate was <fooled>"
    pilot[4]["event"] = "the reward rose; 12 rounds of training follow"
    return [*ranking, *pilot, *(line(i, phase="training", restarts=1) for i in (7, 8))]


def test_the_phases_of_a_run_are_told_apart(tmp_path):
    """Guards against figures of two phases in one: calls and minutes are those of each."""
    folder = make_run(tmp_path / "run", "before")
    lines = phased_lines()
    lines[6]["gain"] = {"one_step": 0.4, "two_step": -0.2}
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = Page(write_report(folder).read_text())
    for row in (
        "Ranking 1 to 2 96 36 s 0.88 – –",  # 100 pairs at 0.8 and 300 at 0.9
        "Pilot 3 to 4 96 12 s 0.80 +0.100 +0.100",
        "Pilot, 2nd beginning 5 to 7 144 18 s 0.80 +0.000 +0.200",
        "Training, 2nd beginning 8 to 9 96 12 s",
    ):
        assert row in page.text, row
    assert page.text.count("Round 4: the surrogate was <fooled>.") == 2, "it is worth knowing too"
    assert page.text.count("Round 2: the surrogate ranks 88% right; a pilot follows.") == 1
    assert page.text.count("Round 7: the reward rose; 12 rounds of training follow.") == 1
    assert "Thin upright lines: another phase began." in page.text


def test_charts_mark_where_a_phase_began(tmp_path):
    """Guards against a curve that falls to nothing for no reason one can see: the generator was the base again."""
    folder = make_run(tmp_path / "run", "before")
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, phased_lines())))
    found = {one.title: one for one in curves(read_run(folder), "train")}
    assert found["Reward: binding"].svg.count('class="beginning"') == 3
    assert found["Gain over the base"].svg.count('class="beginning"') == 2, "it has no value before training"
    assert [one.label for one in found["Drift in changes of prompt"].series] == ["allowed by then"]


def test_no_number_runs_into_the_title_of_its_axis(tmp_path):
    """Bug: charts of what training measures began at "round14", since the tick stood where the title ends."""
    found = chart("Gain", "", [Series("gain", 1, [(14, 0.0), (22, 1.0)])])
    assert found is not None
    assert ">14<" not in found.svg
    assert ">16<" in found.svg


@pytest.mark.parametrize("phase", [{}, {"phase": "training"}])
def test_a_run_of_one_phase_has_no_table_of_them(tmp_path, phase):
    """Guards against a table of one row in runs by hand and in those of earlier releases."""
    folder = make_run(tmp_path / "run", "rounds")
    (folder / "log.jsonl").write_text("\n".join(json.dumps(line(i, **phase)) for i in range(3)))
    text = write_report(folder).read_text()
    assert 'id="phases"' not in text
    assert 'class="beginning"' not in text


def test_a_run_that_had_nothing_to_learn_says_so_at_the_top(tmp_path):
    """Guards against noise as a reward whose report looks like that of a healthy run."""
    folder = make_run(tmp_path / "run", "summary")
    lines = phased_lines()[:2]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    summary = json.loads((folder / "summary.json").read_text()) | {"ended": lines[1]["event"]}
    write_json(folder / "summary.json", summary)
    text = Page(write_report(folder).read_text()).text
    assert f"Worth knowing Round 2: {lines[1]['event']}." in text


@pytest.mark.parametrize("until", STEPS)
def test_every_stage_of_a_run_renders(tmp_path, until):
    """The report is rewritten from the first minute on; a missing file must not end the run."""
    text = write_report(make_run(tmp_path / "run", until)).read_text()
    page = Page(text)
    assert (until == "summary") != ('http-equiv="refresh"' in text), "reloads exactly while unfinished"
    assert "None" not in page.text
    assert "nan" not in page.text.lower()


def test_trouble_is_told_with_what_became_of_it(tmp_path):
    """Guards against a run that was ended for cause and looks like any other."""
    folder = make_run(tmp_path, "summary")
    for action, consequence in (
        ("stop", "ended there"),
        ("roll_back", "went on from its best"),
        (None, "The run went on."),
    ):
        trouble = {"trouble": "the reward fell", "action": action}
        lines = [json.dumps(line(round, **(trouble if round == 9 else {}))) for round in range(10)]
        (folder / "log.jsonl").write_text("\n".join(lines))
        page = Page(write_report(folder).read_text())
        assert re.search(f"Round 10: the reward fell. .*{consequence}", page.text)
    assert "Gain over the base" in page.text


def test_failing_and_tying_rewards_are_named_in_their_own_words(tmp_path):
    """Bug: a run whose reward had died showed how many samples failed, and nowhere what the reward said."""
    folder = make_run(tmp_path, "config")
    failure = {"samples": 24, "of": 24, "statuses": {"http_error": 24}, "status": "http_error", "error": "no <licence>"}
    dead = {"samples": 24, "scored_samples": 0, "failures": {"binding": failure}, "unranked_rounds": 1}
    ties = {"ranked_pairs": 4, "tied_pairs": 62, "spread": 0.001, "tie_margin": 0.02}
    rounds = [line(0, **dead), line(1, **ties), line(2, **ties)]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, rounds)))
    text = Page(write_report(folder).read_text()).text
    said = "reward binding scored 0 of 24 (http_error: no <licence>)"
    assert f"Round 1, the last with a failure: {said}." in text
    assert f"without a ranked pair to update a generator by: 1. Round 1: {said}" in text
    assert "Of all pairs 94% tied. Newest round: 62 of 66 pairs are ties" in text


def test_nothing_is_fetched_and_nothing_runs(tmp_path):
    """Self-contained: opened from disk on a machine without a net, years later."""
    page = Page(write_report(make_run(tmp_path, "summary")).read_text())
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(address.startswith(("data:image/webp;base64,", "#")) for address in page.addresses)
    assert len(page.images) > 10


def test_prompts_and_settings_are_escaped(tmp_path):
    """Prompts are foreign text: markup in them must be shown, not interpreted, in alt texts too."""
    text = write_report(make_run(tmp_path, "summary")).read_text()
    assert "<script" not in text
    page = Page(text)
    assert NASTY in page.text
    assert any(image["alt"] == f"base: {NASTY}" for image in page.images)
    assert all(image["alt"] for image in page.images)


def test_figures_are_those_of_the_summary(tmp_path):
    """The headline must not be computed a second time, and differently."""
    page = Page(write_report(make_run(tmp_path, "summary")).read_text())
    for expected in ("+0.250", "0.500 ± 0.000", "3 (1 failed)", "binding could not score", "(1 timeout)"):
        assert expected in page.text, expected
    assert "The reward rose for 3 of 3 prompts" in page.text
    assert "Finished after 10 rounds in 1 min 30 s, 480 images scored" in page.text


def test_running_shows_round_pace_and_budget(tmp_path):
    """Ten of twenty rounds at 6 s each: a minute left."""
    folder = make_run(tmp_path, "rounds")
    write_json(folder / "config.json", {"name": "demo", "budget": {"max_reward_calls": 5000}})
    page = Page(write_report(folder).read_text())
    assert "round 10 of 20, about 1 min 0 s left" in page.text
    assert "480 images scored of 5,000 allowed" in page.text


@pytest.mark.parametrize("until", ["config", "rounds"])
def test_a_run_that_ended_by_an_error_says_so(tmp_path, until):
    """Bug: the report of a run that had ended said "Running, about 5 s left", reloaded itself for ever and had no
    reason; where the reward had never answered there was no report."""
    folder, writer = make_run(tmp_path, until), ReportWriter()
    writer.run_started(RunInfo("demo", "train", folder, None))
    with pytest.raises(RewardError), stop_recorded(folder, True, writer):
        raise RewardError("reward any scored 0 of 1 (timeout: no <reply>)")
    text = (folder / "report.html").read_text()
    when = "after round 10 of 20" if until == "rounds" else "before the first round"
    assert f"Stopped {when}. reward any scored 0 of 1 (timeout: no <reply>)" in Page(text).text
    assert 'http-equiv="refresh"' not in text
    with stop_recorded(folder, True, writer):
        assert 'http-equiv="refresh"' in write_report(folder).read_text(), "it goes on"


@pytest.mark.parametrize(("stop", "said"), [(KeyboardInterrupt(), "Ctrl-C"), (SystemExit(143), "SIGTERM")])
def test_a_run_that_was_stopped_says_by_what(tmp_path, stop, said):
    """Bug: the report of a run that was stopped said that it was running."""
    with pytest.raises(type(stop)), stop_recorded(make_run(tmp_path, "rounds"), True, Observer()):
        raise stop
    assert f"Stopped after round 10 of 20. {said}" in Page(write_report(tmp_path).read_text()).text


def test_a_pretraining_run_has_its_own_result(tmp_path):
    """Stage 1 has no before and after; its result is how well the surrogate ranks."""
    lines = [line(i, stage="pretrain", score=None, loss=None) for i in range(5)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    write_json(tmp_path / "summary.json", {"held_out_pair_accuracy": 0.871, "held_out_groups": 40})
    page = Page(write_report(tmp_path).read_text())
    assert "0.871" in page.text
    assert "pre-training the surrogate" in page.text
    assert "Surrogate score" not in page.text


@pytest.mark.proof
def test_large_noisy_images_stay_under_the_limit(tmp_path):
    """A report of 1024-pixel photographs must not become hundreds of megabytes."""
    prompts = [f"prompt {i}" for i in range(40)]
    folder = make_run(tmp_path, "summary", prompts)
    noise = png_bytes(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    for path in folder.rglob("*.png"):
        path.write_bytes(noise)
    assert write_report(folder).stat().st_size < 4_000_000


def test_broken_files_are_passed_over(tmp_path):
    """A disk that filled up once must not make the report fail for ever."""
    folder = make_run(tmp_path, "summary")
    for name in ("config.json", "drift.json", "evaluation/after.json", "progress/prompts.json"):
        (folder / name).write_text("[1, ")
    (folder / "evaluation/before/two/00000.png").write_bytes(b"no image")
    Page(write_report(folder).read_text())
    with pytest.raises(NotFoundError, match="no such run folder"):
        write_report(tmp_path / "absent")


def test_a_round_repeated_after_a_resume_counts_once(tmp_path):
    """Rounds after the last checkpoint are done again; both lines stay in the log."""
    rounds = [0, 1, 2, 1, 2]
    records = [line(round, bt_loss=0.1 * position) for position, round in enumerate(rounds)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run = read_run(tmp_path)
    assert points(run.rounds, lambda record: record.surrogate.loss) == [
        (1, 0.0),
        (2, pytest.approx(0.3)),
        (3, pytest.approx(0.4)),
    ]


def test_seconds_left_follows_the_newest_pace():
    """Warm-up rounds are slower; an average over all rounds would mislead for an hour."""
    elapsed_s = [100.0 * i if i < 50 else 5000.0 + i - 49 for i in range(100)]
    slow_then_fast = [RoundRecord("train", i, 200, elapsed_s=seconds) for i, seconds in enumerate(elapsed_s)]
    assert seconds_left(slow_then_fast) == pytest.approx(100.0)
    assert seconds_left(slow_then_fast[:1]) is None


def test_weights_make_the_total(tmp_path):
    """Gains are picked by what is trained on: the weighted sum, missing where one part is missing."""
    run = read_run(make_run(tmp_path, "after"))
    assert run.before is not None
    assert run.totals(run.before, 1) == [0.0, None, pytest.approx(0.4), pytest.approx(0.6)]
    assert run.gains(2) == [pytest.approx(0.5)] * 4


def guarded_run(folder, before, after, **settings):
    """A finished run of two rewards: `r` and the guard `g`, one score per prompt in both stages."""
    prompts = [f"prompt {i}" for i in range(len(before["r"]))]
    folder.mkdir()
    rewards = [{"name": "r", "normalise": settings.pop("normalise", False)}, {"name": "g", "weight": 0.0, "floor": 0.5}]
    write_json(folder / "config.json", {"name": "guarded", "rewards": rewards, "objective": settings})
    found = [
        Evaluation(prompts=prompts, seed=1, rewards={n: {1: v, 2: v} for n, v in scores.items()})
        for scores in (before, after)
    ]
    for name, evaluation in zip(("before", "after"), found, strict=True):
        save_evaluation(folder / "evaluation" / f"{name}.json", evaluation)
    write_json(folder / "summary.json", {"rewards": summary_table(*found)})
    return folder


def test_vetoed_images_are_named_and_left_out_of_gains(tmp_path):
    """A reward bought with what a guard forbids must not show as a gain, nor a guard that failed as passed."""
    before = {"r": [0.1, 0.2, 0.3, 0.4], "g": [0.9, 0.9, 0.4, 0.9]}
    after = {"r": [0.9, 0.3, 0.9, 0.9], "g": [0.1, 0.5, 0.9, None]}
    folder = guarded_run(tmp_path / "run", before, after)
    (folder / "log.jsonl").write_text(json.dumps(line(0, vetoed={"one_step": 0.25, "two_step": 0.0})) + "\n")
    run = read_run(folder)
    assert run.gains(2) == [None, pytest.approx(0.1), None, None]
    page = Page(write_report(folder).read_text())
    assert page.texts.count("vetoed") == 4
    assert "Images of the adapted model that a guard vetoed, of 4: 1 at two steps, 1 at one step." in page.text
    assert "Share of samples below the floor of a guard" in page.text
    assert {"r", "g"} <= set(page.texts), "every reward is in the table"


def test_totals_follow_the_combination(tmp_path):
    """A report that adds what the run multiplies or normalises shows gains that nobody trained on."""
    before, after = {"r": [2.0, 4.0], "g": [1.0, 1.0]}, {"r": [3.0, -4.0], "g": [1.0, 1.0]}
    normalised = read_run(guarded_run(tmp_path / "n", before, after, normalise=True))
    assert normalised.before is not None
    assert normalised.totals(normalised.before, 1) == pytest.approx([-(0.5**0.5), 0.5**0.5])
    assert normalised.gains(1) == pytest.approx([0.5**0.5, -8 * 0.5**0.5])
    product = read_run(guarded_run(tmp_path / "p", before, after, combine="product"))
    assert product.gains(1) == [None, None], "a product of a negative reward has no total"


def test_selection_is_by_the_stated_rule():
    """Largest losses must be real losses, and the random sample must not depend on scores."""
    gains = [0.3, None, -0.2, 0.0, 0.5, -0.1]
    assert pick(gains, 3) == {"gains": [4, 0], "losses": [2, 5]}
    assert pick([0.1, 0.2], 3)["losses"] == []
    assert random_pick(40, 12) == random_pick(40, 12)
    assert random_pick(3, 12) == [0, 1, 2]
    assert spread(range(10, 160, 10), 4) == [10, 60, 100, 150]
    assert spread([5], 4) == [5]


def test_thumbnails_follow_the_file(tmp_path):
    """A cached image of the last round would show a run that stands still."""
    path = tmp_path / "a.png"
    draw(path, 0, side=2 * EDGE)
    first = data_uri(path)
    draw(path, 255, side=2 * EDGE)
    assert first is not None
    assert data_uri(path) != first
    assert data_uri(tmp_path / "absent.png") is None


def test_moving_average_has_no_bias_to_zero():
    """A plain moving average of 5, 5, 5 starts at 0.5; of 0, 1 with momentum 0.5 the weights are 1/3 and 2/3."""
    assert moving_average([5, 5, 5]) == pytest.approx([5, 5, 5])
    assert moving_average([0, 1], momentum=0.5) == pytest.approx([0, 2 / 3])


def test_a_round_counts_by_its_pairs(tmp_path):
    """Bug: a round with two pairs of a kind, half of them right by chance, weighs as much as one with hundreds."""
    assert moving_average([0, 1], momentum=0.5, weights=[2, 3]) == pytest.approx([0, 3 / 4])
    rounds = [{"same_z1": {"accuracy": 0.25, "pairs": 1}}, {}, {"same_z1": {"accuracy": 0.75, "pairs": 9}}]
    lines = [json.dumps(line(i, accuracy_by_kind=found)) + "\n" for i, found in enumerate(rounds)]
    (tmp_path / "log.jsonl").write_text("".join(lines))
    # 0.75 - 0.5 * (0.9 ** 1 * 1) / (0.9 ** 1 * 1 + 9)
    assert "other second noise: 0.25 at round 1, 0.705 at round 3" in write_report(tmp_path).read_text()


def test_ticks_are_round_numbers_within_the_range():
    """Labels such as 0.30000000000000004 or ticks outside the frame."""
    assert nice_ticks(0.13, 0.86) == [0.2, 0.4, 0.6, 0.8]
    assert nice_ticks(0, 150) == [0, 50, 100, 150]
    assert nice_ticks(-1e-5, 1e-5, 4) == [-1e-5, -5e-6, 0, 5e-6, 1e-5]
    assert [tick_label(v) for v in (0.5, 20000, -2, 2e-5, 0, 3e6)] == ["0.5", "20k", "−2", "2e-5", "0", "3e6"]


def test_charts_survive_flat_and_single_points(tmp_path):
    """A constant curve has no range to divide by; the first round has one point."""
    (tmp_path / "log.jsonl").write_text(json.dumps(line(0)) + "\n")
    text = write_report(tmp_path).read_text()
    assert "<circle" in text
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line(i, loss=1.0)) + "\n" for i in range(3)))
    coordinates = re.findall(r'[Md]="?M([-\d., L]+)"', write_report(tmp_path).read_text())
    assert coordinates
    assert all(0 <= float(v) <= 440 for path in coordinates for v in re.findall(r"-?[\d.]+", path))


def test_numbers_read_as_people_write_them():
    """A hyphen for minus and 61 s instead of 1 min 1 s."""
    assert (number(None), number(-0.5), signed(0.25, 2)) == ("–", "−0.500", "+0.25")
    assert [duration(s) for s in (None, 12.4, 61, 7500)] == ["–", "12 s", "1 min 1 s", "2 h 5 min"]
