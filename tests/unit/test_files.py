"""Files that are written whole or not at all, against a limit of the operating system that acts as a full disk."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lasro.errors import StorageError
from lasro.files import write_atomically

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
    assert done.stdout.startswith(f"{path}: File too large; expected a writable folder with room, free the")
    assert done.stdout.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["state.safetensors"]
    assert path.read_bytes() == b"old"


def test_file_and_folder_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the client synced its checkpoint but not the folder, so a power cut could bring the old one back."""
    synced: list[str] = []
    sync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    monkeypatch.setattr("lasro.files.os.fsync", recorded)
    write_atomically(tmp_path / "new" / "state", b"content")
    assert synced == ["file", "folder"]
    assert (tmp_path / "new" / "state").read_bytes() == b"content"


def test_others_can_read_what_was_written(tmp_path: Path) -> None:
    """Bug: files of mode 0600 in a run folder that a group shares."""
    write_atomically(tmp_path / "state", b"")
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o644


def test_the_error_is_one_line_with_the_callers_advice(tmp_path: Path) -> None:
    """Guards against a refusal that does not say which folder, why, or what to do."""
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "state"
    with pytest.raises(StorageError) as raised:
        write_atomically(path, b"", "see LASRO_DATA_DIR")
    assert str(raised.value) == f"{path}: File exists; expected a writable folder with room, see LASRO_DATA_DIR"


def test_files_imports_nothing_heavy() -> None:
    """Bug: writing JSON imported numpy and PIL, for a function that belongs to images."""
    code = "import sys, lasro.files; sys.exit(bool({'numpy', 'PIL', 'pydantic', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
