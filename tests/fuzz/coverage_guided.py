"""Fuzz the decoders of `test_decoders.py`, led by coverage. `make fuzz` installs what it needs.

    python tests/fuzz/coverage_guided.py --seconds 60 [DECODER ...]

Each decoder runs in a process of its own, starting from bodies that it takes. What it should not have done ends the
run with the body left in `.fuzz/`; give that file back with `--replay` to see the traceback again.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")  # has no types, and is not there for every platform

with atheris.instrument_imports(include=["lasro", "lasro_reward_api", "lasro_surrogate_trainer", "safetensors"]):
    from test_decoders import DECODERS, decode, whole_bodies

FOLDER = Path(".fuzz")
LONGEST_BODY_BYTES = 1 << 14
SLOW_S = 5


def fuzz(name: str, seconds: int) -> None:
    """Never returns: libFuzzer ends the process, with status 0 once time is up."""
    seeds = FOLDER / "seeds" / name
    seeds.mkdir(parents=True, exist_ok=True)
    for number, body in enumerate(whole_bodies()[name]):
        (seeds / f"whole-{number}").write_bytes(body)
    options = {
        "max_total_time": seconds,
        "max_len": LONGEST_BODY_BYTES,
        "timeout": SLOW_S,
        "rss_limit_mb": 2048,
        "artifact_prefix": f"{FOLDER}/{name}-",
        "verbosity": 0,
        "print_final_stats": 1,
    }
    flags = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup([sys.argv[0], *flags, str(seeds)], lambda body: decode(name, body))
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("decoders", nargs="*", metavar="DECODER", help=f"of {', '.join(DECODERS)}; absent: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each decoder")
    parser.add_argument("--replay", type=Path, help="a body that was left in .fuzz/; with one DECODER")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.decoders or list(DECODERS)
    if unknown := set(names) - DECODERS.keys():
        parser.error(f"got {sorted(unknown)}, expected names of {sorted(DECODERS)}")
    if given.replay is not None:
        decode(names[0], given.replay.read_bytes())
    elif given.here:
        fuzz(names[0], given.seconds)
    else:
        command = [sys.executable, __file__, "--here", "--seconds", str(given.seconds)]
        failed = [name for name in names if subprocess.run([*command, name], check=False).returncode]
        sys.exit(f"failed: {', '.join(failed)}; see {FOLDER}/" if failed else None)


if __name__ == "__main__":
    main()
