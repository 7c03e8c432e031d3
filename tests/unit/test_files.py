"""Files that are written whole or not at all, against a limit of the operating system that acts as a full disk."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

WRITE = """
import sys
from pathlib import Path
from lasro.errors import StorageError
from lasro.files import write_atomically
try:
    write_atomically(Path(sys.argv[1]), b"x" * 100_000)
except StorageError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_file_and_nothing_half(tmp_path: Path) -> None:
    """Guards against a checkpoint cut short by a full disk, from which no run can go on."""
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(path)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.stdout.startswith(f"{path}: cannot be written (File too large); free the disk")
    assert done.stdout.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["state.safetensors"]
    assert path.read_bytes() == b"old"
