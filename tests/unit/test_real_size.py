"""What `make real-size` runs with; the whole of it is tried in `tests/integration/test_benchmarks.py`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.peak_memory import watch
from benchmarks.real_size.__main__ import CONFIG
from lasro.config import load_config


def test_the_run_is_one_that_the_configuration_allows() -> None:
    """Bug: a setting is renamed, and the script ends after it has written nine gigabytes."""
    config = load_config(CONFIG, ["services.in_process_trainer=true"])
    assert (config.pretrain.rounds, config.train.rounds, config.train.batch_size) == (1, 1, 1)
    assert (CONFIG.parent / "prompts.txt").exists()


def test_memory_is_that_of_the_command_and_a_shared_page_counts_once(tmp_path: Path) -> None:
    """Bug: a model that two processes have mapped is counted twice, or a process that has ended is missing."""
    file, size = tmp_path / "mapped", 64 << 20
    file.write_bytes(bytes(size))
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import mmap, os, sys, time\n"
        "opened = open(sys.argv[1], 'rb')\n"
        "file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "sum(file[::4096])\n"
        "if child := os.fork():\n"
        "    os.waitpid(child, 0)\n"
        "else:\n"
        "    sum(file[::4096])\n"
        "    time.sleep(2)\n"
    )
    found = watch([sys.executable, str(parent), str(file)])
    assert found.status == 0
    ((name, peak),) = found.peaks.items()
    assert name.endswith("parent.py")
    assert peak > size
    assert size < found.together < 1.5 * size
    assert size <= found.of_files + (1 << 20)
    assert found.seconds >= 2 > found.cpu_seconds > 0


def test_memory_of_gpus_is_that_of_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the check on a GPU reports the memory of its processors' side alone."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 40000\necho 12\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert watch(["sleep", "1"]).gpu == 40_012 << 20


def test_what_would_take_the_last_memory_is_ended() -> None:
    """Bug: a machine that is out of memory ends whatever it likes."""
    found = watch([sys.executable, "-c", "import time; time.sleep(60)"], least_free_bytes=1 << 60)
    assert found.status == -9
    assert found.seconds < 30
