"""Reads pickles of plain values, without running any of them: the only place in LaSRO that reads pickle at all.

`pickletools` takes the bytes apart into instructions; those that build plain types are carried out here, on a stack of
our own. Python's unpickler is not used: no class is looked up, nothing is imported, and nothing that a pickle names is
called. numpy's arrays and numbers are put together from their bytes. What is not listed below ends the reading.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from lasro.errors import WireError
from lasro_rewards.pickled_arrays import Dtype, Name, PlainArray, array_of, from_buffer, reconstruct, unexpected

MAX_STEPS = 1 << 16
"""Instructions of one pickle: five hundred images' scores take some thousand."""


class _Mark:
    pass


MARK = _Mark()


def read_plain_pickle(body: bytes) -> Any:
    """The None, booleans, numbers, strings, bytes, lists, tuples, dicts and PlainArrays of a pickle.

    Raises WireError for all else that a pickle can hold or do. Takes memory for the body and MAX_STEPS small values.
    Values may lie inside themselves or one another many times over: look at types before you walk through them.
    """
    reader = _Reader(len(body))
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(body)):
            if step == MAX_STEPS:
                raise WireError(f"pickle: got more than {MAX_STEPS} instructions, expected scores")
            if opcode.name == "STOP":
                return reader.pop()
            reader.carry_out(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"pickle: got {len(body)} bytes that are no whole pickle") from error
    raise WireError(f"pickle: got {len(body)} bytes without an end")


class _Reader:
    """The stack and the memo. Any error of Python's own means that the pickle is malformed."""

    def __init__(self, size_bytes: int) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._left_bytes = size_bytes

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is MARK:
            raise ValueError("a mark in place of a value")
        return value

    def carry_out(self, name: str, argument: Any) -> None:
        if name in PUSHED:
            self._stack.append(argument)
        elif name in CONSTANTS:
            self._stack.append(CONSTANTS[name]())
        elif name in TUPLES:
            self._stack.append(tuple(reversed([self.pop() for _ in range(TUPLES[name])])))
        elif name in STEPS:
            STEPS[name](self, argument)
        elif name not in IGNORED:
            raise WireError(f"pickle: got the instruction {name}, expected plain types and numpy arrays only")

    def _above_mark(self) -> list[Any]:
        start = len(self._stack) - 1
        while self._stack[start] is not MARK:
            start -= 1
            if start < 0:
                raise ValueError("no mark")
        above = self._stack[start + 1 :]
        del self._stack[start:]
        return above

    def mark(self, _: Any) -> None:
        self._stack.append(MARK)

    def make_list(self, _: Any) -> None:
        self._stack.append(self._above_mark())

    def make_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._above_mark()))

    def make_dict(self, _: Any) -> None:
        pairs = self._above_mark()
        self._stack.append({})
        self._set(pairs)

    def append(self, _: Any) -> None:
        self._extend([self.pop()])

    def appends(self, _: Any) -> None:
        self._extend(self._above_mark())

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def set_items(self, _: Any) -> None:
        self._set(self._above_mark())

    def put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._top(object)

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def name(self, name: str | None) -> None:
        if name is None:
            last, module = self.pop(), self.pop()
            name = f"{module} {last}" if isinstance(module, str) and isinstance(last, str) else ""
        if name not in CALLED and name not in NAMED:
            raise unexpected("the name", name)
        self._stack.append(Name(name))

    def call(self, _: Any) -> None:
        """What REDUCE would call is put together here, for the few names that are listed."""
        arguments, name = self.pop(), self.pop()
        if not isinstance(name, Name) or name.text not in CALLED or not isinstance(arguments, tuple):
            raise WireError("pickle: got a call, expected plain types and numpy arrays only")
        made = CALLED[name.text](*arguments)
        if isinstance(made, bytes):  # again and again of one text, they could fill the memory
            self._left_bytes -= len(made)
            if self._left_bytes < 0:
                raise WireError("pickle: got more bytes than it is long, expected each once")
        self._stack.append(made)

    def build(self, _: Any) -> None:
        state, built = self.pop(), self._top(object)
        if not isinstance(built, Dtype | PlainArray):
            raise unexpected("an object's state for", built)
        built.set_state(state)

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if top is MARK or not isinstance(top, kind):
            raise ValueError("another type below")
        return top

    def _extend(self, values: list[Any]) -> None:
        self._top(list).extend(values)

    def _set(self, pairs: list[Any]) -> None:
        # Only keys that hash at once: a tuple of tuples of tuples may take for ever.
        if not all(isinstance(key, str | bytes | int | float | None) for key in pairs[::2]):
            raise WireError("pickle: got a key that is no string or number, expected plain types")
        self._top(dict).update(zip(pairs[::2], pairs[1::2], strict=True))


def _empty_dict() -> dict[Any, Any]:
    return {}


def _latin1(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise unexpected("bytes in", encoding)
    return text.encode("latin1")


PUSHED = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE",
    "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict,
}  # fmt: skip
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
IGNORED = {"PROTO", "FRAME"}
STEPS: dict[str, Callable[[_Reader, Any], None]] = {
    "MARK": _Reader.mark, "LIST": _Reader.make_list, "TUPLE": _Reader.make_tuple, "DICT": _Reader.make_dict,
    "APPEND": _Reader.append, "APPENDS": _Reader.appends, "SETITEM": _Reader.set_item, "SETITEMS": _Reader.set_items,
    "PUT": _Reader.put, "BINPUT": _Reader.put, "LONG_BINPUT": _Reader.put, "MEMOIZE": _Reader.put,
    "GET": _Reader.get, "BINGET": _Reader.get, "LONG_BINGET": _Reader.get,
    "GLOBAL": _Reader.name, "STACK_GLOBAL": _Reader.name, "REDUCE": _Reader.call, "BUILD": _Reader.build,
}  # fmt: skip
CALLED: dict[str, Callable[..., Any]] = {
    "numpy dtype": lambda code, *_: Dtype(code),
    "collections OrderedDict": _empty_dict,
    "collections defaultdict": lambda _: {},
    "_codecs encode": _latin1,
}
NAMED = {"numpy ndarray", "builtins list", "__builtin__ list"}
for core in ("numpy.core", "numpy._core"):  # numpy 1, numpy 2
    CALLED[f"{core}.multiarray _reconstruct"] = reconstruct
    CALLED[f"{core}.multiarray scalar"] = lambda dtype, data: array_of(data, dtype, (), "C").item()
    CALLED[f"{core}.numeric _frombuffer"] = from_buffer
