"""Points of a dithered lattice, one or two elements a point: UVeQFed's code words.

Shlezinger, Chen, Eldar, Poor, Cui, "UVeQFed: Universal Vector Quantization for Federated
Learning", arXiv 2006.03262. The encoder adds a dither that both ends draw from a seed, takes the
nearest lattice point and sends that point; the decoder subtracts the dither again. The error is
then uniform over the lattice's basic cell, whatever the values were, as long as the point lies in
the box that the codes can name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from motley.errors import EncodingError, PayloadError
from motley.wire.encoding import (
    Array,
    Bytes,
    Encoding,
    Floats,
    Parameters,
    check_scale,
    write_floats,
)
from motley.wire.packing import (
    TILE,
    Codes,
    check_bits,
    packed_size,
    unpack,
    unpack_slice,
    unused_bits_are_zero,
)

HEAD = 12
"""Bytes before the codes: seed and step."""

ROW_HEIGHT = np.float32(0.8660254)
"""Distance of the hexagonal lattice's rows, √3 / 2, in units of the distance within a row."""

_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class DitheredLattice(Encoding):
    """Codes of `bits` bits an element, each point of the lattice less its dither.

    Raises:
        EncodingError: `bits` is not 1 to 8, or `dimensions` not 1 or 2.
    """

    number: ClassVar[int] = 6
    name: ClassVar[str] = "lattice"

    bits: int
    dimensions: int
    """1: the multiples of a step; 2: the hexagonal lattice, two elements a point."""

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.dimensions not in (1, 2):
            raise EncodingError(f"a lattice of {self.dimensions} dimensions; expected 1 or 2")

    @property
    def parameters(self) -> Parameters:
        """The bit-width and the lattice's dimensions."""
        return self.bits, self.dimensions, 0

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> DitheredLattice:
        """Read the bit-width and the lattice's dimensions."""
        if parameters[2]:
            raise EncodingError(f"lattice with parameters {parameters}")
        return cls(parameters[0], parameters[1])

    @property
    def middle(self) -> float:
        """The code, not always a whole one, that stands for 0 before the dither is subtracted."""
        return ((1 << self.bits) - 1) / 2

    def code_count(self, n: int) -> int:
        """Return the number of codes of `n` elements: of whole points."""
        return -(-n // self.dimensions) * self.dimensions

    def accepts(self, dtype: str) -> bool:
        """Tell whether `dtype` is float32."""
        return dtype == "float32"

    def segment_size(self, n: int) -> int:
        """Return the bytes of seed, step and the packed codes."""
        return HEAD + packed_size(self.code_count(n), self.bits)

    def seed(self, segment: Bytes) -> int:
        """Return the seed of the dither, 0 to 2^64 - 1."""
        return int(segment[:8].view("<u8")[0])

    def scale(self, segment: Bytes) -> tuple[np.float32, np.float32]:
        """Return (0, step)."""
        return np.float32(0), np.float32(segment[8:HEAD].view("<f4")[0])

    def check_segment(self, segment: Bytes, n: int) -> None:
        """Check step and the unused bits."""
        # Every element is below 2^bits steps: the farthest point, and half a cell of dither.
        check_scale(*self.scale(segment), 1 << self.bits)
        if not unused_bits_are_zero(segment[HEAD:], self.bits, self.code_count(n)):
            raise PayloadError("unused bits behind the last code are not 0")

    def decode_slice(self, segment: Bytes, n: int, start: int, out: Array) -> None:
        """Write the values of a slice (float32)."""
        values = out.view(np.float32)
        for first, codes in self._blocks(segment, n, start, out.size):
            block = values[first : first + TILE]
            places = codes.astype(np.float32)
            places -= np.float32(self.middle)
            if self.dimensions == 2:
                places[::2] += row_shift(codes[1::2])
            places -= dither(self.seed(segment), start + first, codes.size)
            scale_places(places, self.scale(segment)[1], self.dimensions)
            block[:] = places[: block.size]

    def codes(self, segment: Bytes, n: int) -> Codes:
        """Return all codes of elements, uint8 [n]: of a pair, the place in its row, the row."""
        return unpack(segment[HEAD:], self.bits, self.code_count(n))[:n]

    def _blocks(
        self, segment: Bytes, n: int, start: int, count: int
    ) -> Iterator[tuple[int, Codes]]:
        """Yield (first, codes) tile by tile; the last point's codes are whole."""
        buffer = np.empty(self.code_count(min(TILE, count)), np.uint8)
        for first in range(0, count, TILE):
            codes = buffer[: self.code_count(min(TILE, count - first))]
            unpack_slice(segment[HEAD:], self.bits, self.code_count(n), start + first, codes)
            yield first, codes


def row_shift(rows: Codes) -> Floats:
    """Return by how much points of the hexagonal lattice's rows stand off: ±1/4, odd rows +."""
    shift: Floats = np.where(rows & 1, np.float32(0.25), np.float32(-0.25))
    return shift


def scale_places(places: Floats, step: np.float32, dimensions: int) -> None:
    """Turn places in the lattice into values, in place; `places` holds whole points."""
    if dimensions == 2:
        places[::2] *= step
        places[1::2] *= step * ROW_HEIGHT
    else:
        places *= step


def dither(seed: int, start: int, count: int) -> Floats:
    """Return the dither of the elements [start, start + count), float32, -1/2 to below 1/2.

    In units of the lattice's step along a row and of its row height: uniform over a brick that
    tiles the plane as the lattice's points lie in it. Two elements share a 64-bit word of the
    generator SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), word j from seed + (j + 1) γ: any
    element's dither can be had alone. `start` is even.
    """
    words = np.arange(start // 2 + 1, (start + count + 1) // 2 + 1, dtype=np.uint64)
    words *= np.uint64(_GAMMA)
    words += np.uint64(seed)
    for shift, factor in ((30, _MIX_1), (27, _MIX_2), (31, 1)):
        words ^= words >> np.uint64(shift)
        words *= np.uint64(factor)
    halves = words.astype("<u8", copy=False).view("<u4")[:count] >> np.uint32(8)
    uniform: Floats = halves.astype(np.float32)
    uniform *= np.float32(2.0**-24)
    uniform -= np.float32(0.5)
    return uniform


def lattice_segment(encoding: DitheredLattice, n: int, seed: int, step: float) -> Bytes:
    """Return a segment of `n` elements that has its head and not yet its codes.

    Raises:
        EncodingError: a value would not be finite.
    """
    head = np.array([step], np.float32)
    try:
        check_scale(np.float32(0), head[0], 1 << encoding.bits)
    except PayloadError as error:
        raise EncodingError(str(error)) from None
    segment = np.empty(encoding.segment_size(n), np.uint8)
    segment[:8].view("<u8")[0] = seed
    write_floats(segment[8:HEAD], head)
    return segment
