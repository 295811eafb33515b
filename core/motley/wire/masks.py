"""Which elements of a tensor are kept: four ways to say it in bytes ("masked" in the format).

A mask gives its elements a tile at a time, and knows without reading others how many kept ones lie
before a tile: so values under a mask can be decoded from any tile on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from motley.errors import EncodingError, PayloadError
from motley.wire.encoding import Array, Bytes
from motley.wire.gaps import LONGEST, read_gaps, write_gaps
from motley.wire.packing import TILE
from motley.wire.tiles import corner_tile, drawn_tile

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.uint32]


class Mask(ABC):
    """`kept` of `size` elements, in C order. Subclasses are frozen."""

    kind: ClassVar[int]
    """Its number in the parameters of the encoding `masked`."""
    size: int
    kept: int

    @abstractmethod
    def before(self, start: int) -> int:
        """Return how many elements before `start`, a multiple of `TILE`, are kept."""

    @abstractmethod
    def tile(self, start: int, stop: int) -> Bools:
        """Return which of the elements [start, stop) are kept; they lie in one tile.

        Raises:
            PayloadError: the bytes that say so are against the wire format.
        """

    @abstractmethod
    def data(self) -> Bytes:
        """Return the bytes that stand for it in a segment."""

    @classmethod
    @abstractmethod
    def read(cls, head: Bytes, size: int, kept: int) -> tuple[Mask, int]:
        """Read a mask from the bytes behind a segment's head; return it and its length in bytes.

        Raises:
            PayloadError: there are too few bytes, or they are against the wire format.
        """

    def bits(self) -> Bools:
        """Return all of it, bool [size]."""
        whole = np.empty(self.size, np.bool_)
        for start, stop in tiles(self.size):
            whole[start:stop] = self.tile(start, stop)
        return whole

    def take(self, values: Array) -> Array:
        """Return the kept elements, [kept], of an array of `size` elements."""
        flat = values.reshape(-1)
        taken = np.empty(self.kept, flat.dtype)
        for start, stop in tiles(self.size):
            first = self.before(start)
            # By place: choosing by truth values is ten times slower where about half are kept.
            part = flat[start:stop].take(np.flatnonzero(self.tile(start, stop)))
            taken[first : first + part.size] = part
        return taken


@dataclass(frozen=True, eq=False)
class BitMask(Mask):
    """A bit for each element, and the number of ones in each tile."""

    kind: ClassVar[int] = 1

    size: int
    kept: int
    counts: Counts
    """Kept elements of each tile, [tiles]."""
    packed: Bytes
    """The bits, [⌈size / 8⌉], element i at bit i mod 8 of byte ⌊i / 8⌋."""

    @classmethod
    def of(cls, bits: Bools) -> BitMask:
        """Return the mask of the elements that are True in an array of any shape."""
        flat = bits.reshape(-1)
        counts = np.array([np.count_nonzero(flat[a:b]) for a, b in tiles(flat.size)], np.uint32)
        packed = np.packbits(flat, bitorder="little")
        return cls(flat.size, int(counts.sum(dtype=np.int64)), counts, packed)

    def before(self, start: int) -> int:
        """Add up the tiles before."""
        return int(self.counts[: start // TILE].sum(dtype=np.int64))

    def tile(self, start: int, stop: int) -> Bools:
        """Unpack the bits, and compare their sum with the tile's count."""
        part = self.packed[start // 8 : (stop + 7) // 8]
        found = np.unpackbits(part, count=stop - start, bitorder="little").view(np.bool_)
        if np.count_nonzero(found) != self.counts[start // TILE]:
            raise PayloadError("a tile of a bitmap does not hold as many ones as it announces")
        return found

    def data(self) -> Bytes:
        """Return the counts, then the bits."""
        return np.concatenate([_as_bytes(self.counts), self.packed])

    @classmethod
    def read(cls, head: Bytes, size: int, kept: int) -> tuple[BitMask, int]:
        """Read counts and bits."""
        count, length = _tile_count(size), (size + 7) // 8
        counts = _numbers(head, 0, count)
        _check_counts(counts, size, kept)
        end = 4 * count + length
        packed = head[4 * count : end]
        if packed.size != length:
            raise PayloadError("a segment ends within its bitmap")
        if size % 8 and int(packed[-1]) >> size % 8:
            raise PayloadError("unused bits at the end of a bitmap are not 0")
        return cls(size, kept, counts, packed), end


@dataclass(frozen=True, eq=False)
class GapMask(Mask):
    """The distance of each kept element from the one before, in 1 to 3 bytes, tile by tile."""

    kind: ClassVar[int] = 2

    size: int
    kept: int
    counts: Counts
    """Kept elements of each tile, [tiles]."""
    lengths: Counts
    """Bytes of each tile's gaps, [tiles]."""
    gaps: Bytes

    @classmethod
    def of(cls, bits: Bools) -> GapMask:
        """Return the mask of the elements that are True in an array of any shape."""
        flat = bits.reshape(-1)
        parts = [np.flatnonzero(flat[a:b]) for a, b in tiles(flat.size)]
        coded = [write_gaps(part) for part in parts]
        counts = np.array([part.size for part in parts], np.uint32)
        lengths = np.array([part.size for part in coded], np.uint32)
        gaps = np.concatenate(coded) if coded else np.empty(0, np.uint8)
        return cls(flat.size, int(counts.sum(dtype=np.int64)), counts, lengths, gaps)

    def before(self, start: int) -> int:
        """Add up the tiles before."""
        return int(self.counts[: start // TILE].sum(dtype=np.int64))

    def tile(self, start: int, stop: int) -> Bools:
        """Read the tile's gaps, and compare their number with its count."""
        number = start // TILE
        at = int(self.lengths[:number].sum(dtype=np.int64))
        part = self.gaps[at : at + int(self.lengths[number])]
        places = read_gaps(part)
        if places.size != self.counts[number] or (places.size and places[-1] >= stop - start):
            raise PayloadError("the gaps of a tile do not give as many elements as it announces")
        found = np.zeros(stop - start, np.bool_)
        found[places] = True
        return found

    def data(self) -> Bytes:
        """Return the counts, the lengths, then the gaps."""
        return np.concatenate([_as_bytes(self.counts), _as_bytes(self.lengths), self.gaps])

    @classmethod
    def read(cls, head: Bytes, size: int, kept: int) -> tuple[GapMask, int]:
        """Read counts, lengths and gaps."""
        count = _tile_count(size)
        counts, lengths = _numbers(head, 0, count), _numbers(head, 4 * count, count)
        _check_counts(counts, size, kept)
        # Before any of it is unpacked, which takes a multiple of its bytes.
        if ((lengths < counts) | (lengths > np.uint32(LONGEST) * counts)).any():
            raise PayloadError(f"a tile's gaps take less than 1 or more than {LONGEST} bytes each")
        end = 8 * count + int(lengths.sum(dtype=np.int64))
        if end > head.size:
            raise PayloadError("a segment ends within its gaps")
        return cls(size, kept, counts, lengths, head[8 * count : end]), end


@dataclass(frozen=True)
class PrefixMask(Mask):
    """The first `run` of every `period` elements, as often as gives `kept`: a sub-matrix's corner.

    Of a tensor [d1, d2, ...] the corner [:a, :b] has the period d2 · ..., the run b · ... and is
    there a times. With period = size and run = kept it is a plain beginning.

    Raises:
        EncodingError: the numbers are no such mask, or the same mask has a simpler form.
    """

    kind: ClassVar[int] = 3

    size: int
    kept: int
    period: int
    run: int

    def __post_init__(self) -> None:
        is_plain = (self.period, self.run) == (self.size, self.kept) and self.kept <= self.size
        if not is_plain and not (
            0 < self.run < self.period
            and self.size % self.period == 0
            and self.kept % self.run == 0
            and 2 <= self.kept // self.run <= self.size // self.period
        ):
            raise EncodingError(
                f"the first {self.run} of every {self.period} elements give no mask of "
                f"{self.kept} of {self.size}"
            )

    @classmethod
    def corner(cls, shape: tuple[int, ...], rows: int, columns: int) -> PrefixMask:
        """Return the mask that keeps [:rows, :columns] of a tensor of two or more dimensions."""
        size, rest = int(np.prod(shape, dtype=np.int64)), int(np.prod(shape[2:], dtype=np.int64))
        period, run = shape[1] * rest, columns * rest
        kept = rows * run
        if rows == 1 or columns == shape[1] or not kept:
            return cls(size, kept, size, kept)
        return cls(size, kept, period, run)

    def before(self, start: int) -> int:
        """Count whole periods and the begun one."""
        if not self.run:
            return 0
        whole, rest = divmod(start, self.period)
        return min(self.kept, whole * self.run + min(rest, self.run))

    def tile(self, start: int, stop: int) -> Bools:
        """Compare places with the run."""
        if not self.run:
            return np.zeros(stop - start, np.bool_)
        return corner_tile(self.kept, self.period, self.run, start, stop)

    def data(self) -> Bytes:
        """Return period and run."""
        return _as_bytes(np.array([self.period, self.run], "<u8"))

    @classmethod
    def read(cls, head: Bytes, size: int, kept: int) -> tuple[PrefixMask, int]:
        """Read period and run."""
        if head.size < 16:
            raise PayloadError("a segment ends within its prefix")
        period, run = (int(number) for number in head[:16].view("<u8"))
        try:
            return cls(size, kept, period, run), 16
        except EncodingError as error:
            raise PayloadError(str(error)) from None


@dataclass(frozen=True)
class SeededMask(Mask):
    """Elements drawn by a fixed generator from a seed; `docs/wire-format.md` says how.

    Tile by tile, so that each tile has its share: ⌊kept · end / size⌋ - ⌊kept · start / size⌋.

    Raises:
        EncodingError: more elements are to be kept than there are, or the seed is none.
    """

    kind: ClassVar[int] = 4

    size: int
    kept: int
    seed: int
    """0 to 2^64 - 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.kept <= self.size or not 0 <= self.seed < 1 << 64:
            raise EncodingError(f"a mask of {self.kept} of {self.size} from the seed {self.seed}")

    def before(self, start: int) -> int:
        """Return the share of the tiles before."""
        return self.kept * start // self.size if self.size else 0

    def tile(self, start: int, stop: int) -> Bools:
        """Keep the elements with the smallest of the tile's random numbers."""
        share = self.before(stop) - self.before(start)
        if share in (0, stop - start):
            return np.full(stop - start, bool(share))
        return drawn_tile(self.seed, start, stop, share)

    def data(self) -> Bytes:
        """Return the seed."""
        return _as_bytes(np.array([self.seed], "<u8"))

    @classmethod
    def read(cls, head: Bytes, size: int, kept: int) -> tuple[SeededMask, int]:
        """Read the seed."""
        if head.size < 8:
            raise PayloadError("a segment ends within its seed")
        return cls(size, kept, int(head[:8].view("<u8")[0])), 8


MASKS: dict[int, type[Mask]] = {
    mask.kind: mask for mask in (BitMask, GapMask, PrefixMask, SeededMask)
}
"""By number in the parameters of `masked`."""


def smallest_mask(bits: Bools) -> Mask:
    """Return the mask of the elements that are True, in the form that takes the fewest bytes.

    A prefix where it is one; else a bitmap or gaps, a bitmap where both take the same. That an
    array came from a seed cannot be seen: who knows the seed makes a `SeededMask`.
    """
    prefix = _as_prefix(bits)
    if prefix is not None:
        return prefix
    flat = bits.reshape(-1)
    kept, count = int(np.count_nonzero(flat)), _tile_count(flat.size)
    if 8 * count + kept >= 4 * count + (flat.size + 7) // 8:
        return BitMask.of(flat)
    bitmap, gaps = BitMask.of(flat), GapMask.of(flat)
    return gaps if gaps.data().size < bitmap.data().size else bitmap


def tiles(size: int) -> list[tuple[int, int]]:
    """Return the [start, stop) of the tiles of `size` elements."""
    return [(start, min(start + TILE, size)) for start in range(0, size, TILE)]


def _as_prefix(bits: Bools) -> PrefixMask | None:
    """Return the prefix mask that equals an array, where there is one."""
    flat = bits.reshape(-1)
    kept = int(np.count_nonzero(flat))
    if flat[:kept].all():
        return PrefixMask(flat.size, kept, flat.size, kept)
    if not flat[0]:
        return None
    run = int(np.argmin(flat))
    period = run + int(np.argmax(flat[run:]))
    try:
        prefix = PrefixMask(flat.size, kept, period, run)
    except EncodingError:
        return None
    same = all(np.array_equal(prefix.tile(a, b), flat[a:b]) for a, b in tiles(flat.size))
    return prefix if same else None


def _tile_count(size: int) -> int:
    return -(-size // TILE)


def _as_bytes(numbers: npt.NDArray[np.generic]) -> Bytes:
    return numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def _numbers(head: Bytes, at: int, count: int) -> Counts:
    part = head[at : at + 4 * count]
    if part.size != 4 * count:
        raise PayloadError("a segment ends within the counts of its mask")
    return part.view("<u4").astype(np.uint32)


def _check_counts(counts: Counts, size: int, kept: int) -> None:
    room = np.full(counts.size, TILE, np.int64)
    if size % TILE:
        room[-1] = size % TILE
    if (counts > room).any() or int(counts.sum(dtype=np.int64)) != kept:
        raise PayloadError(f"the tiles of a mask do not add up to {kept} of {size} elements")
