"""Places inside a tile as the gaps between them: groups of 7 bits, low ones first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from motley.errors import PayloadError

LONGEST = 3
"""Bytes of the longest gap inside a tile: 16 bits in groups of 7."""


def write_gaps(places: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
    """Return the gaps before a tile's kept places: 7 bits a byte, high bit: it goes on."""
    gaps = np.diff(places, prepend=-1) - 1
    sizes = 1 + (gaps >= 1 << 7) + (gaps >= 1 << 14)
    ends = np.cumsum(sizes)
    out = np.empty(int(ends[-1]) if ends.size else 0, np.uint8)
    for place in range(LONGEST):
        there = sizes > place
        group = gaps[there] >> 7 * place & 0x7F
        group[sizes[there] > place + 1] |= 0x80
        out[(ends - sizes)[there] + place] = group
    return out


def read_gaps(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the kept places of a tile; raise PayloadError when a gap has no shortest form."""
    ends = np.flatnonzero(data < 0x80)
    if data.size and (not ends.size or ends[-1] != data.size - 1):
        raise PayloadError("the gaps of a tile end within a number")
    starts = np.concatenate([np.zeros(min(1, ends.size), np.intp), ends[:-1] + 1])
    sizes = ends - starts + 1
    if sizes.size and (sizes.max() > LONGEST or (data[ends][sizes > 1] == 0).any()):
        raise PayloadError("a gap takes more bytes than it needs")
    gaps = np.zeros(sizes.size, np.int64)
    for place in range(LONGEST):
        there = sizes > place
        gaps[there] |= (data[starts[there] + place] & 0x7F).astype(np.int64) << 7 * place
    return np.cumsum(gaps + 1) - 1
