"""Uniform codes over an offset: value = low + code · step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from motley.errors import EncodingError, PayloadError
from motley.wire import compiled
from motley.wire.encoding import (
    Array,
    Bytes,
    Encoding,
    Floats,
    Parameters,
    check_scale,
    read_floats,
    write_floats,
)
from motley.wire.encodings.gather import gather
from motley.wire.packing import (
    TILE,
    Codes,
    check_bits,
    pack,
    packed_size,
    unpack,
    unpack_slice,
    unused_bits_are_zero,
)
from motley.wire.tensor import EncodedTensor

HEAD = 8
"""Bytes before the codes: low and step."""
_LOOK_UP_TO = 2  # bits; above, two passes of arithmetic are faster than the look-up


@dataclass(frozen=True)
class UniformOffset(Encoding):
    """Codes of `bits` bits; value = fl(low + fl(code · step)), low and step float32.

    Raises:
        EncodingError: `bits` is not 1 to 8.
    """

    number: ClassVar[int] = 2
    name: ClassVar[str] = "uniform"

    bits: int

    def __post_init__(self) -> None:
        check_bits(self.bits)

    @property
    def parameters(self) -> Parameters:
        """The bit-width."""
        return self.bits, 0, 0

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> UniformOffset:
        """Read the bit-width."""
        if any(parameters[1:]):
            raise EncodingError(f"uniform offset with parameters {parameters}")
        return cls(parameters[0])

    @property
    def levels(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def accepts(self, dtype: str) -> bool:
        """Tell whether `dtype` is float32."""
        return dtype == "float32"

    def segment_size(self, n: int) -> int:
        """Return the bytes of low, step and the packed codes."""
        return HEAD + packed_size(n, self.bits)

    def scale(self, segment: Bytes) -> tuple[np.float32, np.float32]:
        """Return (low, step)."""
        low, step = read_floats(segment, 2)
        return low, step

    def check_segment(self, segment: Bytes, n: int) -> None:
        """Check low, step and the unused bits."""
        low, step = self.scale(segment)
        check_scale(low, step, self.levels)
        if not unused_bits_are_zero(segment[HEAD:], self.bits, n):
            raise PayloadError("unused bits behind the last code are not 0")

    def decode_slice(self, segment: Bytes, n: int, start: int, out: Array) -> None:
        """Write the values of a slice (float32)."""
        low, step = self.scale(segment)
        values = out.view(np.float32)
        packed = segment[HEAD:]
        done = compiled.scale(packed, self.bits, n, start, low, step, values)
        start, values = start + done, values[done:]
        if not values.size:
            return
        if self.bits <= _LOOK_UP_TO:
            codes = np.arange(1 << self.bits, dtype=np.float32)
            gather(low + codes * step, packed, self.bits, n, start, values)
        else:
            self._compute(low, step, packed, n, start, values)

    def add_slice(
        self, segment: Bytes, n: int, start: int, weight: np.float32, base: Floats, total: Floats
    ) -> int:
        """Add in one pass where there are compiled loops."""
        low, step = self.scale(segment)
        packed = segment[HEAD:]
        return compiled.add(packed, self.bits, n, start, low, step, weight, base, total)

    def codes(self, segment: Bytes, n: int) -> Codes:
        """Return all codes, uint8 [n]."""
        return unpack(segment[HEAD:], self.bits, n)

    def _compute(
        self, low: np.float32, step: np.float32, packed: Bytes, n: int, start: int, out: Floats
    ) -> None:
        codes = np.empty(0 if self.bits == 8 else min(TILE, out.size), np.uint8)
        for first in range(0, out.size, TILE):
            block = out[first : first + TILE]
            if self.bits == 8:
                tile = packed[start + first : start + first + block.size]
            else:
                tile = codes[: block.size]
                unpack_slice(packed, self.bits, n, start + first, tile)
            np.copyto(block, tile)
            np.multiply(block, step, out=block)
            np.add(block, low, out=block)


def encode_offset(codes: Codes, low: float, step: float, bits: int) -> EncodedTensor:
    """Encode codes (uint8, any shape) that stand for low + code · step.

    Raises:
        EncodingError: a code does not fit into `bits`, or a value would not be finite.
    """
    encoding = UniformOffset(bits)
    if codes.dtype != np.uint8:
        raise EncodingError(f"codes are {codes.dtype}; expected uint8")
    segment = offset_segment(codes.size, low, step, bits)
    pack(np.asarray(codes, order="C").reshape(-1), bits, out=segment[HEAD:])
    return EncodedTensor(encoding, codes.shape, "float32", segment)


def offset_segment(n: int, low: float, step: float, bits: int) -> Bytes:
    """Return a segment of `n` codes that has its head and not yet its codes.

    Raises:
        EncodingError: a value would not be finite.
    """
    encoding = UniformOffset(bits)
    head = np.array([low, step], np.float32)
    try:
        check_scale(head[0], head[1], encoding.levels)
    except PayloadError as error:
        raise EncodingError(str(error)) from None
    segment = np.empty(encoding.segment_size(n), np.uint8)
    write_floats(segment, head)
    return segment
