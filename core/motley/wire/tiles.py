"""Tiles of masks that follow from a few numbers: a corner, a seed.

The last tile is remembered, because a fold asks for it twice: when values are decoded, and to know
who sent them. So nobody may write to what these return.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from motley.wire.packing import TILE

Bools = npt.NDArray[np.bool_]

_LOW_BITS = np.uint64(TILE - 1)


@functools.lru_cache(maxsize=1)
def corner_tile(kept: int, period: int, run: int, start: int, stop: int) -> Bools:
    """Return which elements of a tile a prefix keeps; nobody may write to it."""
    places = np.arange(start, stop)
    found: Bools = places < kept // run * period
    found &= places % period < run
    found.flags.writeable = False
    return found


@functools.lru_cache(maxsize=1)
def drawn_tile(seed: int, start: int, stop: int, share: int) -> Bools:
    """Return which elements of a tile a seed keeps; nobody may write to it."""
    key = np.array([seed, 0], np.uint64)
    counter = np.array([0, start // TILE, 0, 0], np.uint64)
    drawn = np.random.Philox(key=key, counter=counter).random_raw(stop - start)
    # The place in the low bits: no two elements of a tile are equal.
    drawn &= ~_LOW_BITS
    drawn |= np.arange(stop - start, dtype=np.uint64)
    chosen: Bools = drawn <= _smallest(drawn, share)
    chosen.flags.writeable = False
    return chosen


def _smallest(drawn: npt.NDArray[np.uint64], count: int) -> np.uint64:
    """Return the `count`-th smallest of a tile's numbers (no two of them equal).

    By a histogram of their top bits: a partition of the whole takes three times as long.
    """
    top = (drawn >> np.uint64(52)).astype(np.intp)
    until = np.cumsum(np.bincount(top, minlength=1 << 12))
    place = int(np.searchsorted(until, count))
    before = int(until[place - 1]) if place else 0
    found: np.uint64 = np.sort(drawn[top == place])[count - before - 1]
    return found
