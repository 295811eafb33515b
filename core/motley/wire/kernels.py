"""Loops over packed codes that numba compiles; `compiled.py` says when this is imported.

They decode eight codes at a time, spread to the eight bytes of a word. Values are those of the
numpy code, bit for bit: a product is rounded before the sum, for numba contracts nothing unasked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba import types

Octets = npt.NDArray[np.uint64]
Quads = npt.NDArray[np.uint32]
Pairs = npt.NDArray[np.uint16]
Singles = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Loop = TypeVar("Loop", bound=Callable[..., object])

BLOCK = 512
"""Words of a block: their codes and values stay in the first cache."""


def _source(kind: types.Type) -> types.Type:
    """Return the type of an array that lies anywhere in a segment, which nobody may write to."""
    return types.Array(kind, 1, "C", readonly=True, aligned=False)


_SOURCES = tuple(_source(kind) for kind in (types.uint64, types.uint32, types.uint16, types.uint8))
_READ_VALUES = types.Array(types.float32, 1, "C", readonly=True)
_VALUES = types.float32[::1]


def _compiled(result: types.Type, *arguments: types.Type) -> Callable[[Loop], Loop]:
    """Compile a loop for these types now, or take it from numba's cache."""

    def compile_loop(loop: Loop) -> Loop:
        try:
            made = numba.njit(result(*arguments), nogil=True, cache=True)(loop)
        except Exception:
            # No folder can be written, the disk is full, or a cached file is damaged.
            made = numba.njit(result(*arguments), nogil=True)(loop)
        return cast(Loop, made)

    return compile_loop


@_compiled(types.void, *_SOURCES, types.int64, types.uint64[::1])
def _spread(
    eights: Octets, fours: Quads, twos: Pairs, ones: Singles, first: int, words: Octets
) -> None:
    """Write the codes from word `first` on into the bytes of `words`, the lowest byte first."""
    shift = np.uint64(0)
    last = first + words.size
    eights, fours, twos, ones = (
        eights[first:last],
        fours[first:last],
        twos[first:last],
        ones[first:last],
    )
    if eights.size:
        for i in range(words.size):
            words[i] = eights[i]
        return
    for i in range(words.size):
        words[i] = np.uint64(0)
    if fours.size:
        for i in range(words.size):
            x = np.uint64(fours[i])
            x = (x | x << np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
            x = (x | x << np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)
            words[i] = (x | x << np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
        shift = np.uint64(4)
    if twos.size:
        for i in range(words.size):
            x = np.uint64(twos[i])
            x = (x | x << np.uint64(24)) & np.uint64(0x000000FF000000FF)
            x = (x | x << np.uint64(12)) & np.uint64(0x000F000F000F000F)
            words[i] |= ((x | x << np.uint64(6)) & np.uint64(0x0303030303030303)) << shift
        shift += np.uint64(2)
    if ones.size:
        for i in range(words.size):
            x = np.uint64(ones[i])
            x = (x | x << np.uint64(28)) & np.uint64(0x0000000F0000000F)
            x = (x | x << np.uint64(14)) & np.uint64(0x0003000300030003)
            words[i] |= ((x | x << np.uint64(7)) & np.uint64(0x0101010101010101)) << shift


@_compiled(types.void, *_SOURCES, types.float32, types.float32, _VALUES)
def scale(
    eights: Octets,
    fours: Quads,
    twos: Pairs,
    ones: Singles,
    low: np.float32,
    step: np.float32,
    out: Floats,
) -> None:
    """Write low + code · step; `out` has a multiple of 8 elements."""
    words = np.empty(BLOCK, np.uint64)
    codes = words.view(np.uint8)
    for first in range(0, out.size // 8, BLOCK):
        count = min(BLOCK, out.size // 8 - first)
        _spread(eights, fours, twos, ones, first, words[:count])
        block = out[8 * first : 8 * (first + count)]
        for i in range(8 * count):
            block[i] = np.float32(np.float32(codes[i]) * step) + low


@_compiled(
    types.void, *_SOURCES, types.float32, types.float32, types.float32, _READ_VALUES, _VALUES
)
def add(
    eights: Octets,
    fours: Quads,
    twos: Pairs,
    ones: Singles,
    low: np.float32,
    step: np.float32,
    weight: np.float32,
    base: Floats,
    total: Floats,
) -> None:
    """Add weight · ((low + code · step) + base) to `total`, without `base` where that is empty."""
    words = np.empty(BLOCK, np.uint64)
    codes = words.view(np.uint8)
    for first in range(0, total.size // 8, BLOCK):
        count = min(BLOCK, total.size // 8 - first)
        _spread(eights, fours, twos, ones, first, words[:count])
        block = total[8 * first : 8 * (first + count)]
        if base.size:
            old = base[8 * first : 8 * (first + count)]
            for i in range(8 * count):
                value = np.float32(np.float32(codes[i]) * step) + low
                block[i] += np.float32(np.float32(value + old[i]) * weight)
        else:
            for i in range(8 * count):
                value = np.float32(np.float32(codes[i]) * step) + low
                block[i] += np.float32(value * weight)


@_compiled(types.int64, *_SOURCES, _READ_VALUES, _VALUES)
def look_up(
    eights: Octets, fours: Quads, twos: Pairs, ones: Singles, values: Floats, out: Floats
) -> int:
    """Write values[code] and return the largest code; `values` has one for every possible code."""
    words = np.empty(BLOCK, np.uint64)
    codes = words.view(np.uint8)
    largest = np.uint8(0)
    for first in range(0, out.size // 8, BLOCK):
        count = min(BLOCK, out.size // 8 - first)
        _spread(eights, fours, twos, ones, first, words[:count])
        block = out[8 * first : 8 * (first + count)]
        for i in range(8 * count):
            largest = max(largest, codes[i])
        for i in range(8 * count):
            block[i] = values[codes[i]]
    return int(largest)
