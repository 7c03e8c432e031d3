"""Lives of a run, each a process of its own to which something happens; a test asks for them by `run_with`.

They are forked from a process that has imported torch and all else once: that takes longer than most of them last.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

from lasro.config import load_config

LONGEST_S = 280.0
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["lasro_client.run.stage2", "lasro_client.report.page"])


def run_with(fault: str, at: int, config_path: Path, folder: Path, settings: Sequence[str]) -> int:
    """One life of a run, which something happens to in round `at`; its exit status."""
    errors = folder.with_suffix(".errors")
    life = _forks.Process(target=_live, args=(fault, at, config_path, folder, settings, errors))
    life.start()
    life.join(LONGEST_S)
    if life.exitcode is None:
        life.kill()
    assert life.exitcode in (0, -signal.SIGKILL), errors.read_text()
    return life.exitcode


def _live(fault: str, at: int, config_path: Path, folder: Path, settings: Sequence[str], errors: Path) -> None:
    from lasro_client.report.page import ReportWriter
    from lasro_client.run.stage2 import train

    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    with _happening(fault, at):
        train(load_config(config_path, settings), folder, [ReportWriter()])


def _happening(fault: str, at: int) -> AbstractContextManager[object]:
    from lasro_client.run import round_sampler
    from lasro_client.run.alternation import Alternation
    from lasro_client.services.feedback import FeedbackClient

    sample, adapt, checkpoint = round_sampler.sample_groups, FeedbackClient.adapt, Alternation.checkpoint

    def sampled(model: Any, prompts: Any, options: Any, seed: int, stage: str, round: int, **more: Any) -> Any:
        groups = sample(model, prompts, options, seed, stage, round, **more)
        if round == at:
            _kill(os.getpid())
        return groups

    def adapted(self: Any, scored: Any, round: int, steps: int, **more: Any) -> Any:
        if round != at:
            return adapt(self, scored, round, steps, **more)
        threading.Timer(0.02, _kill, (os.getpid() if fault == "adapting" else _trainer_pid(),)).start()
        reply = adapt(self, scored, round, steps, **more)
        if fault == "adapting":
            _kill(os.getpid())
        return reply

    def checkpointed(self: Any) -> None:
        checkpoint(self)
        if self.progress.round == at:
            _kill(os.getpid())

    faults: dict[str, AbstractContextManager[object]] = {
        "none": nullcontext(),
        "sampling": patch.object(round_sampler, "sample_groups", sampled),
        "adapting": patch.object(FeedbackClient, "adapt", adapted),
        "trainer": patch.object(FeedbackClient, "adapt", adapted),
        "checkpointed": patch.object(Alternation, "checkpoint", checkpointed),
    }
    return faults[fault]


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _trainer_pid() -> int:
    children = psutil.Process().children(recursive=True)
    return next(child.pid for child in children if "lasro_surrogate_trainer" in child.cmdline())
