"""Processes among their peers: shares, agreement, sums, and what they send each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import shared_update
from hypothesis import given
from hypothesis import strategies as st
from started_peers import started

from lasro.errors import ConfigError
from lasro.training.distributed import DistributedContext, check_enough

PEER = """
import sys
import torch
from lasro.errors import BudgetError, LasroError
from lasro.training.distributed import processes
from lasro.training.process_codec import CpuTensor

with processes() as peers:
    def work():
        if peers.rank == 1:
            raise BudgetError("spent")
        return peers.rank
    tensor, other = torch.full((2, 2), float(peers.rank)), torch.ones(1)
    peers.sum_(iter([tensor, other]))
    assert tensor.tolist() == [[3.0, 3.0], [3.0, 3.0]] and other.tolist() == [3.0]
    assert peers.all_gather(lambda: "x" * 10 ** peers.rank, str) == ["x", "x" * 10, "x" * 100]
    assert peers.on_main_and_broadcast(lambda: peers.rank, int) == 0
    tensors = peers.all_gather(lambda: torch.full((peers.rank, 2), 0.5), CpuTensor)
    assert [tuple(tensor.shape) for tensor in tensors] == [(0, 2), (1, 2), (2, 2)] and tensors[2].sum() == 2
    for call in (peers.all_gather, peers.on_main_and_broadcast):
        try:
            call(work if call == peers.all_gather else lambda: 1 / 0 if peers.rank else work(), int)
        except BudgetError as error:
            assert call == peers.all_gather and str(error) == "spent"
        else:
            assert call == peers.on_main_and_broadcast
    peers.all_gather(lambda: None, None)
    if peers.rank == 2:
        sys.exit(0)
    try:
        peers.all_gather(lambda: None, None)
    except LasroError as error:
        print(error)
"""


@given(total=st.integers(0, 200), count=st.integers(1, 70))
def test_shares_are_all_items_in_order_and_of_like_size(total: int, count: int) -> None:
    """Guards against items that two processes take, or none."""
    parts = [list(range(total))[DistributedContext(rank, count).share(total)] for rank in range(count)]
    assert [item for part in parts for item in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_waited_for() -> None:
    """Guards against a single process that needs a process group."""
    alone = DistributedContext()
    assert alone.is_main
    assert alone.all_gather(lambda: 3, int) == [3]
    assert alone.on_main_and_broadcast(lambda: 3, int) == 3
    alone.sum_([])


def test_peers_agree_on_values_sums_and_errors_and_are_told_of_one_that_died() -> None:
    """Guards against one that ends its run on an error that the others know nothing of, and so wait for it; and against
    waiting for hours for a process that is gone."""
    *left, died = started(3, "-c", PEER)
    assert died == "", "all went well until it ended"
    for text in left:
        assert "another one ended or cannot be reached" in text
        assert text.count("\n") == 1, "and nothing before"


@pytest.mark.proof  # half a minute of two cores
def test_two_processes_make_the_updates_that_one_makes(tiny_model_path: Path) -> None:
    """Guards against gradients averaged over shares of unequal size, moments of one share, the same noise in both.

    The mean of S is zero at first but for rounding: scores of some hundreds, of a deviation some ten times smaller.
    """
    alone = shared_update.all_updates(str(tiny_model_path), DistributedContext())
    for printed in started(2, shared_update.__file__, str(tiny_model_path)):
        for shared, expected in zip(json.loads(printed), alone, strict=True):
            for step, expected_step in zip(shared, expected, strict=True):
                assert step == pytest.approx(expected_step, rel=1e-4, abs=1e-5)


def test_a_process_without_work_is_refused() -> None:
    """Guards against means over no sample, and against waiting for ever beside a process that has nothing to do."""
    check_enough("train.batch_size", 2, DistributedContext(1, 2))
    with pytest.raises(ConfigError, match=r"train\.batch_size: got 1, expected at least 2, one for each process"):
        check_enough("train.batch_size", 1, DistributedContext(1, 2))
