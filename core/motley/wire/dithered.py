"""Float values to points of a dithered lattice (UVeQFed, arXiv 2006.03262)."""

from __future__ import annotations

import math

import numpy as np

from motley.errors import EncodingError
from motley.wire.encoding import Array, Floats, as_floats
from motley.wire.encodings.lattice import (
    HEAD,
    ROW_HEIGHT,
    DitheredLattice,
    dither,
    lattice_segment,
    row_shift,
)
from motley.wire.packing import TILE, Codes, pack_slice
from motley.wire.tensor import EncodedTensor

_SMALLEST_NORMAL = np.finfo(np.float32).tiny


def quantize_lattice(
    values: Array, bits: int, dimensions: int, seed: int, reach: float = 0.0
) -> EncodedTensor:
    """Quantize float32 values of any shape to a dithered lattice, `bits` bits a value.

    Each point x (one value, or two neighbours in C order) becomes Q(x / step + z), z the dither
    of `seed`, Q the nearest lattice point; decoding subtracts z. Wherever Q stays in the box of
    2^bits places a dimension, the error is uniform over the lattice's basic cell times the step,
    independent of x, with mean 0. Outside of it ("overload") the nearest row of the box is taken
    and the nearest place of that row.

    Args:
        values: finite.
        bits: 1 to 8.
        dimensions: 1, or 2 for the hexagonal lattice; an odd last value is paired with 0.
        seed: of the dither, 0 to 2^64 - 1; never twice for values that are summed.
        reach: 0: the step is large enough that no value overloads. Else the outermost points
            stand at `reach` times the values' root mean square where that is nearer: smaller
            errors for most values, and a bias towards 0 for those far out.

    Raises:
        EncodingError: a value is not finite, or a width or lattice does not exist.
    """
    encoding = DitheredLattice(bits, dimensions)
    flat = as_floats(values)
    step = _step(flat, encoding, reach)
    segment = lattice_segment(encoding, flat.size, seed, step)
    for start in range(0, flat.size, TILE):
        tile = flat[start : start + TILE]
        codes = _codes(tile, encoding, step, dither(seed, start, encoding.code_count(tile.size)))
        pack_slice(codes, bits, encoding.code_count(flat.size), start, segment[HEAD:])
    return EncodedTensor(encoding, values.shape, "float32", segment)


def safe_extent(encoding: DitheredLattice) -> float:
    """Return up to how many steps from 0 no value overloads, whatever its dither.

    One dimension: M / 2, M = 2^bits - 1. Hexagonal: a point of the plane that is less than 1/2
    off the box along a row, or less than h - 1/√3 beyond its outer row (h = √3 / 2), still has a
    nearest point in it; the dither moves by up to 1/2 and h / 2, and rows are shifted by 1/4.
    """
    half = encoding.middle
    if encoding.dimensions == 1:
        return half
    return min(half - 0.25, (half - 1 / 6) * math.sqrt(3) / 2)


def outer_extent(encoding: DitheredLattice) -> float:
    """Return how many steps from 0 the outermost points stand (hexagonal: the outer rows)."""
    return encoding.middle * (1.0 if encoding.dimensions == 1 else math.sqrt(3) / 2)


def _step(flat: Floats, encoding: DitheredLattice, reach: float) -> float:
    """Return the step, a float32 value."""
    if not flat.size:
        return 0.0
    largest = max(float(flat.max()), -float(flat.min()))
    if not math.isfinite(largest):
        raise EncodingError("values to quantize are not finite; check the training step")
    # A little more than the division gives: its rounding must not push the largest value out.
    step = largest / safe_extent(encoding) * (1 + 1e-5)
    if reach:
        squares = sum(
            float(np.square(flat[at : at + TILE], dtype=np.float64).sum())
            for at in range(0, flat.size, TILE)
        )
        step = min(step, reach * math.sqrt(squares / flat.size) / outer_extent(encoding))
    return float(np.float32(step)) if step >= _SMALLEST_NORMAL else 0.0


def _codes(tile: Floats, encoding: DitheredLattice, step: float, shift: Floats) -> Codes:
    """Return the codes of whole points; `shift` is their dither."""
    points = np.zeros(shift.size, np.float32)
    if step == 0:
        return points.astype(np.uint8)
    np.divide(tile, np.float32(step), out=points[: tile.size])
    if encoding.dimensions == 1:
        points += shift
        points += np.float32(encoding.middle)
        return _clipped(np.rint(points), encoding.bits)
    columns, rows = points[::2], points[1::2]
    rows /= ROW_HEIGHT
    points += shift
    points += np.float32(encoding.middle)
    return _nearest_hexagonal(columns, rows, encoding.bits)


def _nearest_hexagonal(columns: Floats, rows: Floats, bits: int) -> Codes:
    """Return the codes of the nearest points to places (column, row), float32 [p] each.

    The lattice is two rectangular ones, its even rows and its odd rows: the nearest point is the
    nearer one of the nearest in each.
    """
    even, odd = 2 * np.rint(rows / 2), 2 * np.rint((rows - 1) / 2) + 1
    to_even = _offset(columns + np.float32(0.25)) + 0.75 * np.square(rows - even)
    to_odd = _offset(columns - np.float32(0.25)) + 0.75 * np.square(rows - odd)
    codes = np.empty(2 * rows.size, np.uint8)
    codes[1::2] = _clipped(np.where(to_odd < to_even, odd, even), bits)
    codes[::2] = _clipped(np.rint(columns - row_shift(codes[1::2])), bits)
    return codes


def _offset(places: Floats) -> Floats:
    """Return the squared distance of each place to the nearest whole number."""
    squares: Floats = np.square(places - np.rint(places))
    return squares


def _clipped(places: Floats, bits: int) -> Codes:
    return np.clip(places, 0, (1 << bits) - 1).astype(np.uint8)
