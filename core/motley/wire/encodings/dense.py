"""Values one after the other, as they are or in half precision."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from motley.errors import EncodingError, PayloadError
from motley.wire.encoding import Array, Bytes, Encoding, Floats, Parameters, as_floats
from motley.wire.packing import TILE
from motley.wire.table import DTYPES
from motley.wire.tensor import EncodedTensor

KINDS = (*DTYPES, "float16", "bfloat16")
_HALVES = ("float16", "bfloat16")
_STORED = {"float16": "<f2", "bfloat16": "<u2", "bool": "u1"}


@dataclass(frozen=True)
class Dense(Encoding):
    """One stored value an element.

    Raises:
        EncodingError: `kind` is not one of `KINDS`.
    """

    number: ClassVar[int] = 1
    name: ClassVar[str] = "dense"

    kind: str
    """How values are stored: a dtype of the tensor table, "float16" or "bfloat16"."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise EncodingError(f"dense kind {self.kind!r}; expected one of {KINDS}")

    @property
    def parameters(self) -> Parameters:
        """The kind's number."""
        return KINDS.index(self.kind) + 1, 0, 0

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Dense:
        """Read the kind's number."""
        kind, *rest = parameters
        if not 1 <= kind <= len(KINDS) or any(rest):
            raise EncodingError(f"dense with parameters {parameters}; no such kind")
        return cls(KINDS[kind - 1])

    @property
    def stored(self) -> np.dtype[np.generic]:
        """Type of the stored values; bfloat16 is its 16 bits as an unsigned integer."""
        return _stored(self.kind)

    def accepts(self, dtype: str) -> bool:
        """Tell whether `dtype` is the kind itself, or float32 for the halves."""
        return dtype == ("float32" if self.kind in _HALVES else self.kind)

    def segment_size(self, n: int) -> int:
        """Return n times the bytes of a value."""
        return n * self.stored.itemsize

    def check_segment(self, segment: Bytes, n: int) -> None:
        """Nothing stands besides the values."""

    def decode_slice(self, segment: Bytes, n: int, start: int, out: Array) -> None:
        """Copy or widen the values."""
        values = segment.view(self.stored)[start : start + out.size]
        if self.kind == "bfloat16":
            wide = out.view(np.uint32)
            np.copyto(wide, values)
            np.left_shift(wide, np.uint32(16), out=wide)
        elif self.kind == "bool":
            if values.size and int(np.max(values)) > 1:
                raise PayloadError("a bool tensor holds a byte that is neither 0 nor 1")
            np.copyto(out.view(np.uint8), values)
        else:
            np.copyto(out, values)

    def is_settled(self) -> bool:
        """Tell whether the kind is an integer."""
        return "int" in self.kind


@cache
def _stored(kind: str) -> np.dtype[np.generic]:
    return np.dtype(_STORED.get(kind) or np.dtype(kind).newbyteorder("<"))


def encode_dense(array: Array, kind: str | None = None, *, copy: bool = True) -> EncodedTensor:
    """Encode an array of any shape value by value.

    `kind` is the array's own dtype when None; a float32 array may be stored as "float16" or
    "bfloat16", rounded to nearest with ties to even. With copy=False a contiguous array is not
    copied: the result then shares its memory and must be written before the array changes.

    Raises:
        EncodingError: the dtype has no such kind, or a finite value would become infinite.
    """
    dtype = array.dtype.name
    encoding = Dense(dtype if kind is None else kind)
    if not encoding.accepts(dtype):
        raise EncodingError(f"a {dtype} tensor cannot be stored as {encoding.kind}")
    if encoding.kind in _HALVES:
        stored = _to_half(as_floats(array), encoding)
    else:
        stored = np.asarray(array, array.dtype.newbyteorder("<"), order="C").reshape(-1)
        stored = stored.copy() if copy and np.may_share_memory(stored, array) else stored
    return EncodedTensor(encoding, array.shape, dtype, stored.view(np.uint8))


def _to_half(values: Floats, encoding: Dense) -> Array:
    half = np.empty(values.size, encoding.stored)
    for first in range(0, values.size, TILE):
        block = values[first : first + TILE]
        part = half[first : first + TILE]
        if encoding.kind == "bfloat16":
            np.copyto(part, _bfloat16(block), casting="unsafe")
            infinite = (part & np.uint16(0x7FFF)) == 0x7F80
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                np.copyto(part, block, casting="same_kind")
            infinite = np.isinf(part)
        if np.any(infinite & np.isfinite(block)):
            raise EncodingError(f"a value is too large for {encoding.kind}; use float32")
    return half


def _bfloat16(block: Floats) -> npt.NDArray[np.uint32]:
    bits = block.view(np.uint32)
    upper = bits >> np.uint32(16)
    # Half of the dropped part's range, plus one when the kept part is odd: ties go to even.
    rounded: npt.NDArray[np.uint32] = (
        bits + (np.uint32(0x7FFF) + (upper & np.uint32(1)))
    ) >> np.uint32(16)
    # The rounding could carry a NaN into infinity; its quiet bit keeps it a NaN.
    rounded[np.isnan(block)] = upper[np.isnan(block)] | np.uint32(0x40)
    return rounded
