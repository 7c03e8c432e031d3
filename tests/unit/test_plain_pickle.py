"""Pickles of plain values are read; those that would do something are not, whatever they would do."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import subprocess
import time
import tracemalloc
from collections import OrderedDict, defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lasro.errors import WireError
from lasro_rewards.plain_pickle import MAX_STEPS, read_plain_pickle

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(min_size=1),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    | st.tuples(inner, inner, inner, inner) | st.tuples(inner),
)  # fmt: skip


@settings(max_examples=40)
@given(plain, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_back_the_same(value: Any, protocol: int) -> None:
    """Bug: an entry gets another's place, so an image gets another's score; or some protocol is not read."""
    assert read_plain_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("code", ["<f8", ">f4", "<f2", "|b1", "<i8", ">u2", "|u1"])
def test_arrays_of_numbers_come_back_the_same(protocol: int, code: str) -> None:
    """Bug: bytes in another order than this machine's, or columns first, give other numbers."""
    flat = np.array([1, 0, 3], code)
    grid = np.arange(6, dtype=code if "b" not in code else "u1").reshape(2, 3)
    for array in (flat, grid, np.asfortranarray(grid), flat[:1]):
        found = read_plain_pickle(pickle.dumps({"scores": array, "again": [array]}, protocol))
        assert np.array_equal(found["scores"].values, array)
        assert found["again"][0] is found["scores"]
    assert read_plain_pickle(pickle.dumps([np.float32(0.5), np.int64(-3)], protocol)) == [0.5, -3]


def test_dicts_of_other_kinds_are_dicts() -> None:
    """Bug: GenEval's groups or an ordered dict of scores are refused as code."""
    groups = defaultdict(list, counting=[1.0])
    found = read_plain_pickle(pickle.dumps({"a": OrderedDict(b=1), "g": groups}))
    assert found == {"a": {"b": 1}, "g": {"counting": [1.0]}}


class Does:
    """What calls `function` when Python's own unpickler reads it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._made = function, arguments

    def __reduce__(self) -> Any:
        return self._made


class Point:
    def __init__(self) -> None:
        self.x = 1


def state_of(function: str, state: bytes) -> bytes:
    module, name = function.split()
    return f"c{module}\n{name}\n".encode() + state + b"b."


ATTACKS: dict[str, Any] = {
    "os.system": Does(os.system, "touch pwned"),
    "subprocess": Does(subprocess.Popen, ["touch", "pwned"]),
    "eval": Does(eval, "open('pwned', 'w')"),
    "exec in a list": [1, {"a": (Does(exec, "open('pwned', 'w')"),)}],
    "getattr of os": b"cbuiltins\ngetattr\n(cos\nsystem\ntR.",
    "getattr of an allowed name": b"cbuiltins\ngetattr\n(cnumpy\ndtype\nV__globals__\ntR.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
    "nested reduce": Does(np.dtype, Does(os.system, "touch pwned")),
    "a call of what a call made": b"cnumpy\ndtype\n(Vf8\ntR(Vf8\ntR.",
    "a call without a tuple": b"cnumpy\ndtype\nVf8\nR.",
    "a call of ndarray": b"cnumpy\nndarray\n((I1\nttR.",
    "numpy.load": Does(np.load, "x"),
    "_reconstruct of another class": b"cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\nlist\n(I0\ntVb\ntR.",
    "instance": b"(ios\nsystem\n(Vtouch pwned\ntR.",
    "object": b"(cos\nsystem\nVtouch pwned\no.",
    "new object": b"\x80\x02cbuiltins\nobject\n)\x81.",
    "a class of one's own": Point(),
    "state of a function": state_of("numpy dtype", b"(V__code__\nI1\ntd"),
    "state of a list": b"](lp0\n(I1\nI2\ntb.",
    "persistent id": b"Pid\n.",
    "binary persistent id": b"\x80\x02Vx\nQ.",
    "extension": b"\x80\x02\x82\x01.",
    "buffer": b"\x80\x05\x97.",
    "array of objects": np.array([Does(os.system, "touch pwned")], object),
    "array of text": np.array(["a"]),
    "array of bytes": np.array([b"a"]),
    "array of records": np.zeros(2, [("a", "f8")]),
    "array of dates": np.array(["2026-01-01"], "datetime64[s]"),
    "complex": np.array([1j]),
    "date": datetime(2026, 1, 1, tzinfo=UTC),
    "decimal": Decimal("0.5"),
    "set": {1, 2},
    "path": Path("x"),
    "tensor": b"ctorch._utils\n_rebuild_tensor_v2\n.",
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_not_plain_is_refused_and_does_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: whoever answers in place of a pickle server runs what he likes on the machine of the bridge."""
    monkeypatch.chdir(tmp_path)
    attack = ATTACKS[name]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        body = attack if isinstance(attack, bytes) else pickle.dumps(attack, protocol)
        with pytest.raises(WireError, match=r"^pickle: got ") as refused:
            read_plain_pickle(body)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 300
    assert not any(tmp_path.iterdir())


def test_a_tensor_is_refused_with_what_to_do() -> None:
    """Bug: a server that answers tensors is refused without a word of how to go on."""
    with pytest.raises(WireError, match=r"torch._utils _rebuild_tensor_v2.*have the server send tensor.tolist\(\)"):
        read_plain_pickle(ATTACKS["tensor"])


def array(shape: bytes, data: bytes) -> bytes:
    """An array of float64 of this shape, written as instructions, and these bytes."""
    head = b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
    return head + b"(K\x01" + shape + b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8tR\x89" + data + b"tb."


def tuples(levels: int) -> bytes:
    """A tuple of the last tuple twice, again and again: small, but endless to whoever walks through it."""
    return b"\x80\x04)\x94" + b"".join(b"h%ch%c\x86\x94" % (level, level) for level in range(levels))


BOMBS = {
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"ab.",
    "text that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"ab.",
    "a bytearray that is not there": b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b"ab.",
    "an integer that is not there": b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"ab.",
    "a negative length": b"\x80\x02\x8b" + struct.pack("<i", -5) + b"ab.",
    "a decimal of 100,000 digits": b"L" + b"9" * 100_000 + b"L\n.",
    "a shape of 2 ** 60": array(b"\x8a\x08" + struct.pack("<q", 1 << 60), b"C\x02ab"),
    "a shape of long integers": array(b"(" + (b"\x8b\xa0\x86\x01\x00" + b"\x7f" * 100_000) * 8 + b"t", b"C\x02ab"),
    "an array of more bytes than it has": array(b"K\x03", b"C\x08abcdefgh"),
    "a negative shape": array(b"J" + struct.pack("<i", -1), b"C\x08abcdefgh"),
    "more instructions than scores take": b"\x80\x02" + b"N0" * 100_000 + b"N.",
    "marks without end": b"\x80\x02" + b"(" * 100_000 + b".",
    "lists in lists": b"\x80\x02" + b"]" * 30_000 + b"a" * 29_999 + b"0.",
    "a tuple of tuples as a key": tuples(60) + b"}" + b"h\x3cNs.",
    "one text encoded over and over": b"\x80\x02X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x000"
    + b"c_codecs\nencode\nq\x01X\x06\x00\x00\x00latin1q\x0200" + b"h\x01h\x00h\x02\x86R" * 5_000 + b".",
    "nothing": b"",
    "no end": b"\x80\x04N",
    "an empty stack": b"0.",
    "a memo that is not there": b"h\x07.",
    "no mark": b"t.",
    "not pickle": b"<html>Login</html>",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_take_time_or_memory_is_refused_at_once(name: str) -> None:
    """Bug: a few bytes of an answer make the bridge ask for a terabyte, or count for hours."""
    body = BOMBS[name]
    started_s = time.thread_time()
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=r"^pickle: got "):
            read_plain_pickle(body)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 8 * len(body) + (100 * MAX_STEPS)
    assert time.thread_time() - started_s < 10


def test_every_attack_is_a_pickle() -> None:
    """The attacks themselves: bytes that Python's tools take apart as well, up to their end."""
    for attack in ATTACKS.values():
        if isinstance(attack, bytes):
            assert list(pickletools.genops(io.BytesIO(attack)))[-1][0].name == "STOP"
