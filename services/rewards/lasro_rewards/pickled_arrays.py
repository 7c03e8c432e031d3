"""numpy's arrays and numbers out of their pickled parts: an element type, a shape, and bytes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from lasro.errors import WireError

MAX_DIMENSIONS, MAX_SIZE = 8, 1 << 32
DTYPE = re.compile(r"b1|[iu][1248]|f[248]")
"""Numbers and booleans: no objects, text, dates or records."""


@dataclass(frozen=True)
class Name:
    """What a pickle calls by name; only ever compared."""

    text: str


class Dtype:
    """The type of an array's elements: numpy's code for it, and which byte comes first."""

    def __init__(self, code: object) -> None:
        if not isinstance(code, str) or DTYPE.fullmatch(code) is None:
            raise unexpected("an array of", code)
        self.code, self.order = code, "<"

    def set_state(self, state: Any) -> None:
        match state:
            case (int(), "<" | ">" | "|" | "=" as order, *_):
                self.order = order
            case _:
                raise unexpected("a dtype's state", state)

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class PlainArray:
    """A numpy array of numbers or booleans. The bytes are shared, not copied, until `values` are asked for."""

    def __init__(self) -> None:
        self.values = np.zeros(0)

    def set_state(self, state: Any) -> None:
        match state:
            case (int(), shape, Dtype() as dtype, bool() as is_fortran, bytes() | bytearray() as data):
                self.values = array_of(data, dtype, shape, "F" if is_fortran else "C")
            case _:
                raise unexpected("an array's state", state)


def array_of(data: bytes | bytearray, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array over `data`; raises WireError unless `dtype`, `shape` and `order` are numpy's and fit its length."""
    sizes = shape if isinstance(shape, tuple) else (shape,)
    # Bounded, since the product of long integers takes as long as one likes.
    is_shape = len(sizes) <= MAX_DIMENSIONS and all(type(size) is int and 0 <= size <= MAX_SIZE for size in sizes)
    is_data = isinstance(data, bytes | bytearray)
    if not isinstance(dtype, Dtype) or not is_data or not is_shape or order not in ("C", "F"):
        raise WireError("pickle: got an array of another form than numpy's, expected numbers")
    if (size_bytes := math.prod(sizes) * dtype.numpy.itemsize) != len(data):
        raise WireError(f"pickle: got {len(data)} bytes for an array of {size_bytes}, expected as many")
    return np.frombuffer(data, dtype.numpy).reshape(sizes, order=order)


def from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> PlainArray:
    array = PlainArray()
    array.values = array_of(data, dtype, shape, order)
    return array


def reconstruct(kind: Any, shape: Any, code: Any) -> PlainArray:
    if kind not in (Name("numpy ndarray"), Name("numpy._core.multiarray ndarray")):
        raise unexpected("an array of the class", kind)
    return PlainArray()


def unexpected(what: str, value: object) -> WireError:
    shown = value.text if isinstance(value, Name) else value if isinstance(value, str) else type(value).__name__
    hint = "; have the server send tensor.tolist()" if "torch" in shown else ""
    return WireError(f"pickle: got {what} {shown[:80]!r}, expected plain types and numpy arrays of numbers{hint}")
