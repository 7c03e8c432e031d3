"""`python -m benchmarks.gpu`: what LaSRO does in a second, on one GPU, beside plain diffusers and peft.

Random weights, no download, at most ten minutes. Sections run in order of value, each in a process of its own, and stop
when their share of the time is over. JSON and a table are written after each.
`--tiny` is a smoke test of every section, with models of a few kilobytes, on any device; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.table import markdown

MODULE = "benchmarks.gpu.section"
RESULTS = Path(__file__).parents[1] / "results"
LAST_LINES = 3
END_S = 10.0
"""For a section that is told to end to end what it started."""


class Section(NamedTuple):
    name: str
    share: float
    """Of all the time; what a section leaves of it, later ones have."""
    what: str


SECTIONS = (
    Section("models", 0.10, "random weights on disk"),
    Section("sampling", 0.12, "images per second"),
    Section("update", 0.09, "an update of the generator"),
    Section("gradient", 0.12, "gradients and weights over HTTP"),
    Section("memory-0", 0.13, "memory of the smallest model"),
    Section("loop", 0.19, "the loop over services"),
    Section("surrogate", 0.06, "a step of the surrogate"),
    Section("memory-1", 0.09, "memory of a larger model"),
    Section("memory-2", 0.10, "memory of the largest model"),
)
LEAST_S = 10.0
"""Shorter shares are not worth the start of a process."""
MEASURING = 0.3
"""Of a section's share, what it may measure in: the rest is for loading."""


class Report:
    """All that was found, on disk after each section."""

    def __init__(self, out: Path, tiny: bool) -> None:
        self.out, self.tiny = out, tiny
        self.found: dict[str, Any] = {"smoke_test": tiny, "machine": {}, "sections": {}, "figures": [], "notes": []}

    def add(self, section: Section, status: str, seconds: float, records: Path) -> None:
        """What the section wrote, and how it ended."""
        self.found["sections"][section.name] = {"status": status, "seconds": round(seconds, 1)}
        lines = records.read_text(encoding="utf-8").splitlines() if records.exists() else []
        figures: dict[str, dict[str, Any]] = {}
        for line in map(json.loads, lines):
            if "machine" in line:
                self.found["machine"] = line["machine"]
            elif "text" in line:
                self.found["notes"].append(line["text"])
            else:
                figures[line["name"]] = line | {"section": section.name}
        self.found["figures"] += figures.values()
        self.write()

    def write(self) -> Path:
        """JSON and table by the device's name; returns the table's file."""
        self.out.mkdir(parents=True, exist_ok=True)
        device = re.sub(r"[^a-z0-9]+", "-", self.found["machine"].get("device", "unknown").lower()).strip("-")
        table = self.out / f"gpu-{'smoke-test-' if self.tiny else ''}{device}.md"
        table.with_suffix(".json").write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        table.write_text(markdown(self.found), encoding="utf-8")
        return table


def run_section(section: Section, folder: Path, seconds: float, tiny: bool) -> str:
    """How it ended: `ok`, or why not. It is killed, with all that it started, when its time is over."""
    records = folder / f"{section.name}.jsonl"
    command = [sys.executable, "-m", MODULE, section.name, str(folder), str(records)]
    command += ["0", "--tiny"] if tiny else [f"{seconds * MEASURING:.1f}"]
    log = folder / f"{section.name}.log"
    with log.open("wb") as file:
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            code = None
        finally:
            _end(process)
    if code == 0:
        return "ok"
    last = " / ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_LINES:])
    return f"ended after {seconds:.0f} s, its share" if code is None else f"failed ({code}): {last}"


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a smoke test, with models of a few kilobytes")
    parser.add_argument("--minutes", type=float, help="for all sections together; default: 10, and 60 with --tiny")
    parser.add_argument("--only", nargs="+", choices=[each.name for each in SECTIONS[1:]], help="sections")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results; with --tiny runs/bench-gpu")
    given = parser.parse_args()
    report = Report(given.out or (Path("runs/bench-gpu") if given.tiny else RESULTS), given.tiny)
    chosen = [each for each in SECTIONS if each.name == "models" or not given.only or each.name in given.only]
    seconds = 60 * (given.minutes or (60 if given.tiny else 10))
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="lasro-bench-gpu-", dir=os.environ.get("TMPDIR")) as name:
        for number, section in enumerate(chosen):
            began = time.monotonic()
            share = (deadline - began) * section.share / sum(each.share for each in chosen[number:])
            short = f"skipped: its share of what is left is {share:.0f} s"
            status = short if share < LEAST_S else run_section(section, Path(name), share, given.tiny)
            report.add(section, status, time.monotonic() - began, Path(name) / f"{section.name}.jsonl")
            print(f"{section.name}: {status} ({time.monotonic() - began:.0f} s)", flush=True)
            if section.name == "models" and status != "ok":
                sys.exit(1)
    print(f"\n{markdown(report.found)}\n{report.write()}")
    if any(each["status"] != "ok" for each in report.found["sections"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
