"""Processes among their peers: shares, agreement, sums."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from lasro_client.processes import Processes

PEER = """
import sys
import torch
from lasro.errors import BudgetError, LasroError
from lasro_client.processes import processes

with processes() as peers:
    def work():
        if peers.rank == 1:
            raise BudgetError("spent")
        return peers.rank
    tensor, other = torch.full((2, 2), float(peers.rank)), torch.ones(1)
    peers.sum_(iter([tensor, other]))
    assert tensor.tolist() == [[3.0, 3.0], [3.0, 3.0]] and other.tolist() == [3.0]
    assert peers.all_of(lambda: 10 * peers.rank) == [0, 10, 20]
    assert peers.by_first(lambda: peers.rank) == 0
    for call in (peers.all_of, peers.by_first):
        try:
            call(work if call == peers.all_of else lambda: 1 / 0 if peers.rank else work())
        except BudgetError as error:
            assert call == peers.all_of and str(error) == "spent"
        else:
            assert call == peers.by_first
    if peers.rank == 2 and sys.argv[1] == "die":
        sys.exit(0)
    try:
        peers.all_of(lambda: None)
    except LasroError as error:
        print(error)
"""


@given(total=st.integers(0, 200), count=st.integers(1, 70))
def test_shares_are_all_items_in_order_and_of_like_size(total: int, count: int) -> None:
    """Guards against items that two processes take, or none."""
    parts = [list(range(total))[Processes(rank, count).share(total)] for rank in range(count)]
    assert [item for part in parts for item in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_waited_for() -> None:
    """Guards against a single process that needs a process group."""
    alone = Processes()
    assert alone.first
    assert alone.all_of(lambda: 3) == [3]
    assert alone.by_first(lambda: 3) == 3
    alone.sum_([])


def started(*arguments: str) -> list[str]:
    """Three peers; what each printed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with ExitStack() as exits:
        peers = []
        for rank in range(3):
            env = {"RANK": str(rank), "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            command = [sys.executable, "-c", PEER, *arguments]
            env |= os.environ | {"OMP_NUM_THREADS": "1"}
            peers.append(exits.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)))
        printed = [peer.communicate(timeout=120)[0] for peer in peers]
        assert all(peer.returncode == 0 for peer in peers)
    return printed


def test_peers_agree_on_values_sums_and_errors() -> None:
    """Guards against one that ends its run on an error that the others know nothing of, and so wait for it."""
    assert started("live") == ["", "", ""]


def test_a_peer_that_died_is_told_of() -> None:
    """Guards against waiting for hours for a process that is gone."""
    printed = started("die")
    assert all("another one ended or cannot be reached" in text for text in printed[:2])
