"""`[tracking]`: what trackers are sent, and that none of them, nor the command at the end, can end a run."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lasro.config import RunSettings, TrackingSettings, load_config
from lasro.errors import ConfigError
from lasro.images import png_bytes
from lasro_client.cli.main import app
from lasro_client.run.kept_settings import changed_settings, kept_settings
from lasro_client.run.observer import Observers, RunInfo
from lasro_client.run.round_record import RewardRecord, RoundRecord, SurrogateRecord, to_json
from lasro_client.run.stopped import stop_recorded
from lasro_client.watch.on_end import OnEnd, call
from lasro_client.watch.tracked_values import figures, grid
from lasro_client.watch.trackers import Trackers
from lasro_client.watch.tracking import check_tracking

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
MINIMAL = 'name = "x"\n[prompts]\ntrain = "t.txt"\nheld_out = "h.txt"\n[[rewards]]\nname = "r"\n[tracking]\n'
SETTINGS = {"name": "x", "prompts": {"train": "t", "held_out": "h"}, "rewards": [{"name": "r"}]}


def record(round: int) -> RoundRecord:
    rewards = RewardRecord(rewards={"redness": {1: 0.25 * round, 2: None}}, gain={1: 0.5, 2: -0.5})
    return RoundRecord("train", round, 9, rewards=rewards, surrogate=SurrogateRecord(loss=0.75), reward_calls=12)


def draw(folder: Path, *colours: tuple[int, int, int]) -> None:
    folder.mkdir(parents=True)
    for index, colour in enumerate(colours):
        (folder / f"{index}.png").write_bytes(png_bytes(np.full((8, 8, 3), colour, np.uint8)))


class Life:
    """One life of a run in a folder, which its trackers watch."""

    def __init__(self, folder: Path, trackers: tuple[Any, ...] = ("tensorboard",)) -> None:
        self.folder, self.said = folder, list[str]()
        self.info = RunInfo("named", "train", folder, None)
        self.observers = Observers([Trackers(trackers, self.said.append)])
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"seed": 3, "train": {"steps": [1, 2], "rate": 0.5}}))

    def rounds(self, *rounds: int, done: int = 0) -> None:
        """Do these rounds, after each of which there is a picture."""
        log = self.folder / "log.jsonl"
        log.write_text("".join(to_json(record(round)) + "\n" for round in range(done)))
        with self.observers.run(self.info), self.observers.rounds(9, done):
            for round in rounds:
                with log.open("a") as file:
                    file.write(to_json(record(round)) + "\n")
                self.observers.round_done(record(round))
                pictures = self.folder / "progress" / f"{round + 1:05d}"
                if not pictures.exists():
                    draw(pictures, RED, GREEN)
                self.observers.folder_updated()


def events(folder: Path) -> EventAccumulator:
    """All that the event files of a run say, as TensorBoard shows it."""
    found = EventAccumulator(str(folder / "tracking" / "named"), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(name)]


def test_tensorboard_has_figures_and_pictures_and_a_resumed_run_doubles_nothing(tmp_path: Path) -> None:
    """Guards against curves that jump back where a run was killed, and against pictures of the wrong prompts."""
    folder = tmp_path / "run"
    draw(folder / "evaluation" / "before" / "two", BLUE, BLUE)
    Life(folder).rounds(0, 1, 2)
    resumed = Life(folder)
    resumed.rounds(1, 2, 3, done=1)  # killed after a checkpoint of one round
    assert resumed.said == [f"tensorboard: tensorboard --logdir {folder / 'tracking'}"]
    assert scalars(folder, "reward/redness/one_step") == [(1, 0.0), (2, 0.25), (3, 0.5), (4, 0.75)]
    assert scalars(folder, "gain/two_step") == [(step, -0.5) for step in (1, 2, 3, 4)]
    found = events(folder)
    assert "reward/redness/two_step" not in found.Tags()["scalars"], "nothing was measured there"
    pictures = found.Images("pictures")
    assert [picture.step for picture in pictures] == [0, 1, 2, 3, 4]
    (tmp_path / "grid.png").write_bytes(pictures[1].encoded_image_string)
    shown = np.asarray(Image.open(tmp_path / "grid.png"))
    assert shown.shape == (8, 16, 3)
    assert [tuple(shown[4, column]) for column in (4, 12)] == [RED, GREEN]
    hyperparameters = (folder / "tracking").rglob("hparams.yml")
    assert ["train.rate: 0.5" in path.read_text() for path in hyperparameters] == [True], "sent once"


@pytest.mark.filterwarnings("default")  # theirs are not ours to mend
@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_other_trackers_take_a_run_and_go_on_with_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a tracker that nobody here has, whose package changed. Nothing leaves the machine."""
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    folder, sent = tmp_path / "run", tmp_path / "run" / "tracking" / "sent.json"
    draw(folder / "evaluation" / "before" / "two", BLUE, BLUE)
    lives = [Life(folder, (name,)), Life(folder, (name,))]
    lives[0].rounds(0, 1)
    first = json.loads(sent.read_text())[name]
    lives[1].rounds(1, 2, done=1)
    assert json.loads(sent.read_text())[name] == first | {"rounds": 3, "pictures": 3}
    assert first["id"]
    assert [len(life.said) for life in lives] == [1, 1], "none failed"


def test_a_tracker_that_is_named_later_gets_the_rounds_before(tmp_path: Path) -> None:
    """Guards against a curve that begins where somebody thought of watching it."""
    Life(tmp_path / "run", ()).rounds(0, 1)
    Life(tmp_path / "run").rounds(2, done=2)
    assert [step for step, _ in scalars(tmp_path / "run", "surrogate/loss")] == [1, 2, 3]


def test_the_summary_is_sent_at_the_end(tmp_path: Path) -> None:
    """Guards against a tracker that lacks the figures by which runs are compared."""
    life = Life(tmp_path / "run")
    difference = {"mean": 0.125, "sem": None}
    summary = {"rewards": {"redness": {"one_step": {"difference": difference}}}, "drift": None}
    life.rounds(0)
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    with life.observers.run(life.info):
        life.observers.folder_updated()
        life.observers.folder_updated()
    assert scalars(tmp_path / "run", "summary/rewards/redness/one_step/difference/mean") == [(1, 0.125)]


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a full disk of a dashboard that costs a night of training, and against a line for each round."""
    from accelerate.tracking import TensorBoardTracker

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    life = Life(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(TensorBoardTracker, "log", fails)
        life.rounds(0, 1)
    assert len(life.said) == 2
    assert life.said[1].startswith("tensorboard failed (OSError: [Errno 28] No space left on device); the run goes on")
    Life(tmp_path / "run").rounds(2, done=2)
    assert [step for step, _ in scalars(tmp_path / "run", "run/reward_calls")] == [1, 2, 3]


def test_a_tracker_that_cannot_start_is_said_before_the_run(tmp_path: Path) -> None:
    """Guards against an hour of training that nobody sees: a file is where the folder of a tracker should be."""
    life = Life(tmp_path / "run")
    (tmp_path / "run" / "tracking").mkdir()
    (tmp_path / "run" / "tracking" / "named").write_text("")
    with pytest.raises(ConfigError, match=r"tracking.report_to: tensorboard cannot be started \(.*\); mend that, or"):
        life.rounds(0)
    assert life.said == []


def test_trackers_open_no_process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against accelerate joining the processes that a launcher names, of which only one has trackers."""
    import torch.distributed
    from accelerate import PartialState

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    PartialState._reset_state()
    Life(tmp_path / "run").rounds(0)
    assert not torch.distributed.is_initialized()
    assert PartialState().is_main_process
    assert os.environ["LOCAL_RANK"] == "1"


def test_what_was_not_measured_is_not_sent() -> None:
    """Guards against a zero that nobody measured, and against a name that a tracker refuses."""
    found = figures(RoundRecord("pretrain", 4, rewards=RewardRecord(total={4: 0.5})))
    assert found.pop("total/four_step") == 0.5
    assert {name.partition("/")[0] for name in found} == {"run", "surrogate"}
    assert found["surrogate/ranked_pairs"] == 0


def test_a_grid_has_rows_of_four(tmp_path: Path) -> None:
    """Guards against eight pictures in a row, each too narrow to be seen."""
    draw(tmp_path / "p", *[RED] * 4, GREEN, BLUE)
    found = grid(sorted((tmp_path / "p").iterdir()))
    assert found.size == (32, 16)
    assert [found.getpixel((column, 12)) for column in (4, 12, 20)] == [GREEN, BLUE, (0, 0, 0)]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (
            'report_to = ["tensorbord"]',
            "tracking.report_to.0: got 'tensorbord'. Input should be 'tensorboard', 'wandb'",
        ),
        ('report_to = ["wandb", "wandb"]', "got ['wandb', 'wandb'], expected each tracker once"),
        ('on_end = "say \'it"', 'tracking.on_end: got "say \'it". cannot be split into words (No closing quotation)'),
        ('on_end = " "', "tracking.on_end: got ' '. expected a program and its arguments"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path: Path, line: str, part: str) -> None:
    """Guards against a misspelt tracker that is passed over."""
    (tmp_path / "run.toml").write_text(MINIMAL + line)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.toml")
    assert part in str(caught.value)


def test_a_missing_package_is_refused_with_its_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a run that is not tracked, and against a mere folder of its name that is taken for it."""
    (tmp_path / "tensorboard").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    pattern = r"got tensorboard, .* here; pip install 'lasro\[tracking\]', or leave it out"
    with pytest.raises(ConfigError, match=pattern):
        check_tracking(TrackingSettings(report_to=("tensorboard",)))


@pytest.mark.parametrize("command", ["pretrain", "train"])
def test_a_command_that_is_not_there_is_refused_at_the_start(tmp_path: Path, command: str) -> None:
    """Guards against a night of training after which nobody is called. It is looked for beside the file."""
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL + 'on_end = "./tell me"')
    assert load_config(path).tracking.end_command == [str(tmp_path / "tell"), "me"]
    with pytest.raises(ConfigError, match=f"tracking.on_end: got {tmp_path}/tell, expected a program on the PATH"):
        app([command, str(path), "--out", str(tmp_path / "run")], standalone_mode=False)
    assert not (tmp_path / "run").exists()


def test_tracking_may_be_another_when_a_run_goes_on() -> None:
    """Guards against a run that cannot go on since it was not watched before, or was begun by an earlier release."""
    plain = RunSettings.model_validate(SETTINGS)
    tracked = RunSettings.model_validate(SETTINGS | {"tracking": {"report_to": ["tensorboard"], "on_end": "true"}})
    known = kept_settings("train", plain)
    assert "tracking" not in known
    assert changed_settings(known, "train", tracked) == []


TELL = """
import json, os, sys
names = ("LASRO_RUN", "LASRO_STATUS", "LASRO_REASON", "LASRO_SUMMARY")
json.dump([sys.argv[2:], *(os.environ[name] for name in names)], open(sys.argv[1], "w"))
"""


@pytest.mark.parametrize(
    ("ends_by", "summary", "status", "reason"),
    [
        (None, {"ended": None}, "finished", ""),
        (None, {"ended": "it drifted"}, "finished", "it drifted"),
        (KeyboardInterrupt(), None, "stopped", "Ctrl-C"),
        (SystemExit(143), None, "stopped", "SIGTERM"),
        (ConfigError("this is wrong"), None, "failed", "this is wrong"),
        (ZeroDivisionError(), None, "failed", ""),
    ],
)
def test_the_command_hears_how_a_run_ended(
    tmp_path: Path, ends_by: BaseException | None, summary: dict[str, Any] | None, status: str, reason: str
) -> None:
    """Guards against a message of success after a failure, and against words that a shell would take apart."""
    heard, said, script = tmp_path / "heard.json", list[str](), tmp_path / "tell.py"
    script.write_text(TELL)
    command = [sys.executable, str(script), str(heard), "two words; $HOME"]
    observers = Observers([OnEnd(command, said.append)])

    def live() -> None:
        with observers.run(RunInfo("named", "train", tmp_path, None)), stop_recorded(tmp_path, True, observers):
            if summary is not None:
                (tmp_path / "summary.json").write_text(json.dumps(summary))
            if ends_by is not None:
                raise ends_by

    if ends_by is None:
        live()
    else:
        with pytest.raises(type(ends_by)):
            live()
    assert said == []
    path = str(tmp_path / "summary.json") if status == "finished" else ""
    assert json.loads(heard.read_text()) == [["two words; $HOME"], "named", status, reason, path]


def test_a_command_that_fails_or_hangs_is_said_in_a_line(tmp_path: Path) -> None:
    """Guards against a run that never ends for its notification, and against processes that it leaves behind."""
    failing = [sys.executable, "-c", "print('no network'); raise SystemExit(3)"]
    assert call(failing, {}, 20.0) == "ended with status 3: no network"
    assert call([str(tmp_path)], {}, 20.0) == "cannot be called (Permission denied)"
    started = time.monotonic()
    assert call(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"], {}, 1.0) == "was killed after 1 s"
    assert time.monotonic() - started < 20
    assert has_ended(int((tmp_path / "pid").read_text()))


def has_ended(pid: int) -> bool:
    """Within some seconds; a zombie, which nobody waits for in a container without an init, has ended too."""
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_run_that_did_not_begin_calls_nobody(tmp_path: Path) -> None:
    """Guards against the message of the day before, where a tracker cannot be started today."""
    (tmp_path / "stopped.json").write_text('{"reason": "Ctrl-C"}')
    said: list[str] = []
    with Observers([OnEnd(["false"], said.append)]).run(RunInfo("named", "train", tmp_path, None)):
        pass
    assert said == []
