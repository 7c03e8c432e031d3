"""Processes of one group, as a launcher starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack


def started(count: int, *command: str) -> list[str]:
    """So many peers; what each printed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with ExitStack() as exits:
        peers = []
        for rank in range(count):
            env = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            peer = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=env)
            peers.append(exits.enter_context(peer))
        printed = [peer.communicate(timeout=240)[0] for peer in peers]
        assert all(peer.returncode == 0 for peer in peers)
    return printed
