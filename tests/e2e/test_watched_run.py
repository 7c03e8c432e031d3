"""Both stages with a real tracker, and a pause in each from another terminal."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lasro.config import load_config
from lasro_client.cli.main import app
from lasro_client.run.list_runs import find_runs
from lasro_client.run.observer import Observer, RunInfo
from lasro_client.run.round_record import RoundRecord
from lasro_client.run.stage1 import pretrain
from lasro_client.run.stage2 import train
from lasro_client.watch.tracking import tracking_observers

PAUSE_S = 3.0


class OtherTerminal(Observer):
    """Pauses the run after its first round, looks at it after PAUSE_S, and has it go on."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.waited_s: list[float] = []
        self._folder, self._began = Path(), 0.0

    def run_started(self, run: RunInfo) -> None:
        self._folder = run.folder

    def round_done(self, record: RoundRecord) -> None:
        if record.round == 0:
            self._runs("pause")

    def activity(self, text: str | None, left_s: float | None = None) -> None:
        if text is not None and text.startswith("paused; lasro runs resume "):
            self._began = time.monotonic()
            threading.Timer(PAUSE_S, self._look_and_resume).start()
        elif text is None and self._began:
            self.waited_s.append(time.monotonic() - self._began)
            self._began = 0.0

    def _look_and_resume(self) -> None:
        self.seen += [run.state for run in find_runs(self._folder.parent) if run.name == self._folder.name]
        self._runs("resume")

    def _runs(self, command: str) -> Any:
        app(["runs", command, self._folder.name, "--root", str(self._folder.parent)], standalone_mode=False)


@pytest.mark.proof
def test_both_stages_are_paused_and_tracked(config_path: Path, tmp_path: Path) -> None:
    """Guards against services that end in a pause, minutes that it uses up, and a tracker that a real run breaks."""
    heard = tmp_path / "heard"
    script = tmp_path / "tell"
    script.write_text(f'#!/bin/sh\necho "$LASRO_RUN $LASRO_STATUS $LASRO_SUMMARY" >> {heard}\n')
    script.chmod(0o755)
    tracking = ["tracking.report_to=['tensorboard']", f"tracking.on_end={script}"]
    config = load_config(config_path, [*tracking, "services.in_process_trainer=true"])
    said: list[str] = []
    for stage, run in (("stage1", pretrain), ("stage2", train)):
        terminal, folder = OtherTerminal(), tmp_path / stage
        run(config, folder, [terminal, *tracking_observers(config.tracking, said.append)])
        assert terminal.seen == ["paused"]
        assert len(terminal.waited_s) == 1
        assert terminal.waited_s[0] > PAUSE_S
        found = EventAccumulator(str(folder / "tracking" / "tiny"), size_guidance={"scalars": 0, "images": 0}).Reload()
        steps = [event.step for event in found.Scalars("run/elapsed_s")]
        assert steps == [1, 2, 3, 4]
        assert not (folder / "pause-requested").exists()
        elapsed_s = [event.value for event in found.Scalars("run/elapsed_s")]
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert elapsed_s == pytest.approx([line["elapsed_s"] for line in lines])
        assert json.loads((folder / "summary.json").read_text())["versions"].keys() >= {"lasro", "torch"}
    assert [image.step for image in found.Images("pictures")] == [0, 2, 4]
    assert any(name.startswith("summary/rewards/jpeg") for name in found.Tags()["scalars"])
    assert said == [
        f"tensorboard: tensorboard --logdir {tmp_path / stage / 'tracking'}" for stage in ("stage1", "stage2")
    ]
    finished = [f"tiny finished {tmp_path / stage / 'summary.json'}" for stage in ("stage1", "stage2")]
    assert heard.read_text().splitlines() == finished
