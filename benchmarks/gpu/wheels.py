"""`python -m benchmarks.gpu.wheels FOLDER`: wheels of all that the benchmark imports, for a machine without a network.

Torch and what it needs are left out: a machine with a GPU has its own. Versions are those installed here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("serve", "train", "embedded")
OWN = {"torch", "lasro"}
PLATFORMS = ("manylinux1", "manylinux2010", "manylinux2014", *(f"manylinux_2_{n}" for n in range(17, 40)))


def needed(name: str, extras: tuple[str, ...], seen: set[str]) -> Iterator[str]:
    """`NAME==VERSION` of what a package needs, and of what that needs, each once."""
    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        other = canonicalize_name(requirement.name)
        applies = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": each}) for each in ("", *extras)
        )
        if other in seen or not applies:
            continue
        seen.add(other)
        try:
            yield f"{other}=={distribution(other).version}"
        except PackageNotFoundError:
            continue
        yield from needed(other, tuple(requirement.extras), seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}", help="version over there")
    parser.add_argument("--machine", default="x86_64", help="processor over there")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="packages that are there already")
    given = parser.parse_args()
    left_out = OWN | {canonicalize_name(name) for name in given.without}
    wanted = list(needed("lasro", EXTRAS, set(left_out)))
    options = ["--no-deps", "--only-binary=:all:", "--python-version", given.python, "--implementation", "cp"]
    platforms = [part for each in PLATFORMS for part in ("--platform", f"{each}_{given.machine}")]
    command = [sys.executable, "-m", "pip", "download", "-q", *options, *platforms, "-d", str(given.folder), *wanted]
    subprocess.run(command, check=True)
    size = sum(file.stat().st_size for file in given.folder.glob("*.whl"))
    print(f"{len(wanted)} wheels, {size / 2**20:.1f} MiB in {given.folder}")


if __name__ == "__main__":
    main()
