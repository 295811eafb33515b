"""Uniform codes in sign and magnitude, one contiguous plane a bit: value = ±magnitude · step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from motley.errors import EncodingError, PayloadError
from motley.wire.encoding import (
    Array,
    Bytes,
    Encoding,
    Parameters,
    check_scale,
    read_floats,
    write_floats,
)
from motley.wire.packing import TILE, check_bits
from motley.wire.tensor import EncodedTensor

HEAD = 4
"""Bytes before the sign plane: step."""

SignedCodes = npt.NDArray[np.int16]


@dataclass(frozen=True)
class UniformPlanes(Encoding):
    """A sign plane and those of `bits` magnitude planes that `present` names.

    Raises:
        EncodingError: `bits` is not 1 to 8, or `present` names planes above them.
    """

    number: ClassVar[int] = 3
    name: ClassVar[str] = "uniform"

    bits: int
    present: int
    """Bit b is 1 when the plane of weight 2^b is there."""

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if not 0 <= self.present < 1 << self.bits:
            raise EncodingError(f"planes {self.present:#x} of {self.bits} magnitude bits")

    @property
    def parameters(self) -> Parameters:
        """The number of magnitude bits and which of their planes are there."""
        return self.bits, self.present, 0

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> UniformPlanes:
        """Read the number of magnitude bits and which of their planes are there."""
        if parameters[2]:
            raise EncodingError(f"uniform planes with parameters {parameters}")
        return cls(parameters[0], parameters[1])

    @property
    def weights(self) -> tuple[int, ...]:
        """Bit numbers of the planes that are there, the least significant first."""
        return tuple(bit for bit in range(self.bits) if self.present >> bit & 1)

    def accepts(self, dtype: str) -> bool:
        """Tell whether `dtype` is float32."""
        return dtype == "float32"

    def segment_size(self, n: int) -> int:
        """Return the bytes of step, the sign plane and the magnitude planes."""
        return HEAD + (1 + len(self.weights)) * plane_size(n)

    def scale(self, segment: Bytes) -> tuple[np.float32, np.float32]:
        """Return (0, step)."""
        return np.float32(0), read_floats(segment, 1)[0]

    def check_segment(self, segment: Bytes, n: int) -> None:
        """Check step and the unused bits of each plane."""
        check_scale(*self.scale(segment), (1 << self.bits) - 1)
        size = plane_size(n)
        last = segment[HEAD + size - 1 :: size] if size else segment[:0]
        if n % 8 and int(np.max(last)) >> n % 8:
            raise PayloadError("unused bits at the end of a plane are not 0")

    def decode_slice(self, segment: Bytes, n: int, start: int, out: Array) -> None:
        """Write the values of a slice (float32)."""
        _, step = self.scale(segment)
        values = out.view(np.float32)
        for first, codes in self._blocks(segment, n, start, out.size):
            block = values[first : first + codes.size]
            np.copyto(block, codes)
            np.multiply(block, step, out=block)

    def codes(self, segment: Bytes, n: int) -> SignedCodes:
        """Return all codes, int16 [n]."""
        codes = np.empty(n, np.int16)
        for first, block in self._blocks(segment, n, 0, n):
            codes[first : first + block.size] = block
        return codes

    def _blocks(
        self, segment: Bytes, n: int, start: int, count: int
    ) -> Iterator[tuple[int, SignedCodes]]:
        size = plane_size(n)
        planes = segment[HEAD:].reshape(1 + len(self.weights), size)
        for first in range(0, count, TILE):
            block = min(TILE, count - first)
            at = (start + first) // 8
            part = planes[:, at : at + (block + 7) // 8]
            magnitude = np.zeros(block, np.uint8)
            for plane, bit in zip(part[1:], self.weights, strict=True):
                ones = np.unpackbits(plane, count=block, bitorder="little")
                magnitude |= np.left_shift(ones, np.uint8(bit), out=ones)
            codes = magnitude.astype(np.int16)
            # -x = (x ^ -1) + 1, and x = (x ^ 0) + 0.
            sign = np.unpackbits(part[0], count=block, bitorder="little").astype(np.int16)
            codes ^= -sign
            codes += sign
            yield first, codes


def plane_size(n: int) -> int:
    """Return the bytes of one plane of `n` bits."""
    return (n + 7) // 8


def encode_planes(
    codes: SignedCodes, step: float, bits: int, present: int | None = None
) -> EncodedTensor:
    """Encode signed codes (int16, any shape, |code| < 2^bits) that stand for code · step.

    `present` names the magnitude planes to send (bit b: weight 2^b); None sends all. Bits of a
    code in a plane that is left out are lost.

    Raises:
        EncodingError: a code does not fit, or a value would not be finite.
    """
    encoding = UniformPlanes(bits, (1 << bits) - 1 if present is None else present)
    if codes.dtype != np.int16:
        raise EncodingError(f"codes are {codes.dtype}; expected int16")
    head = np.array([step], np.float32)
    try:
        check_scale(np.float32(0), head[0], (1 << bits) - 1)
    except PayloadError as error:
        raise EncodingError(str(error)) from None
    segment = np.empty(encoding.segment_size(codes.size), np.uint8)
    write_floats(segment, head)
    flat = np.asarray(codes, order="C").reshape(-1)
    planes = segment[HEAD:].reshape(1 + len(encoding.weights), plane_size(flat.size))
    for first in range(0, flat.size, TILE):
        block = flat[first : first + TILE]
        if max(-int(block.min()), int(block.max())) >> bits:
            raise EncodingError(f"a magnitude does not fit into {bits} bits")
        magnitude = np.abs(block).astype(np.uint8)
        part = planes[:, first // 8 : first // 8 + plane_size(block.size)]
        part[0] = np.packbits(block < 0, bitorder="little")
        for plane, bit in zip(part[1:], encoding.weights, strict=True):
            plane[:] = np.packbits(magnitude & np.uint8(1 << bit), bitorder="little")
    return EncodedTensor(encoding, codes.shape, "float32", segment)
