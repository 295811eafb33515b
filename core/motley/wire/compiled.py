"""Decoding with compiled loops where numba is installed (the extra `fast`), else not at all.

Importing numba takes most of a second and 130 MB, so a process decodes a good deal without it
first: small models never need it, and daemons that decode nothing never import it. Results are the
same bits either way. `MOTLEY_COMPILED=0` in a process's environment keeps numba out.
"""

from __future__ import annotations

import functools
import os
import sys
from types import ModuleType

import numpy as np

from motley.wire.encoding import Bytes, Floats
from motley.wire.packing import GROUPS, packed_size

SWITCH = "MOTLEY_COMPILED"
"""Environment variable; "0" keeps numba from being imported."""

PAYS_FROM = 1 << 28
"""Elements that a process decodes with numpy first: it takes 0.1 to 0.3 s for them."""


class Usage:
    """Counts decoded elements until compiled loops pay."""

    def __init__(self, pays_from: float = PAYS_FROM) -> None:
        self.pays_from = pays_from
        self._elements = 0

    def loops(self, count: int) -> ModuleType | None:
        """Return the compiled loops for `count` elements more, or None where there are none."""
        if self._elements < self.pays_from:
            self._elements += count
            return None
        return load()


usage = Usage()
"""Of this process."""


def scale(
    packed: Bytes, bits: int, n: int, start: int, low: np.float32, step: np.float32, out: Floats
) -> int:
    """Write low + code · step into the head of `out` and return how many elements that are.

    They are all up to the last multiple of 8, or 0 without compiled loops. `start` is a multiple of
    8 and `packed` (uint8 [packed_size(n, bits)]) the whole tensor's.
    """
    loops, count = usage.loops(out.size), _whole(packed, bits, n, start, out)
    if loops is None or not count:
        return 0
    loops.scale(*_sources(packed, bits, n, start, count), low, step, out[:count])
    return count


def add(
    packed: Bytes,
    bits: int,
    n: int,
    start: int,
    low: np.float32,
    step: np.float32,
    weight: np.float32,
    base: Floats,
    total: Floats,
) -> int:
    """Add weight · ((low + code · step) + base) as `scale` writes; return how many elements.

    `base` is as long as `total`, or empty and then not added.
    """
    # What numpy decodes instead is counted there.
    loops, count = usage.loops(0), _whole(packed, bits, n, start, total)
    if loops is None or not count or not base.flags.carray:
        return 0
    sources = _sources(packed, bits, n, start, count)
    loops.add(*sources, low, step, weight, base[:count], total[:count])
    return count


def look_up(
    packed: Bytes, bits: int, n: int, start: int, values: Floats, out: Floats
) -> tuple[int, int]:
    """Write values[code] as `scale` does; return how many elements, and their largest code.

    A code that has no value writes 0.
    """
    loops, count = usage.loops(out.size), _whole(packed, bits, n, start, out)
    if loops is None or not count:
        return 0, 0
    table = np.zeros(1 << bits, np.float32)
    table[: values.size] = values
    largest = loops.look_up(*_sources(packed, bits, n, start, count), table, out[:count])
    return count, int(largest)


@functools.cache
def load() -> ModuleType | None:
    """Import the compiled loops; None where they are not wanted or numba does not work."""
    if os.environ.get(SWITCH) == "0" or sys.byteorder != "little":
        return None
    try:
        from motley.wire import kernels
    except Exception:
        # Not installed, not for this numpy, or no memory left: numpy decodes the same.
        return None
    return kernels


def _whole(packed: Bytes, bits: int, n: int, start: int, out: Floats) -> int:
    """Return how many elements compiled loops may write; they check no bounds of their own."""
    is_inside = start >= 0 and start + out.size <= n and packed.size == packed_size(n, bits)
    return out.size // 8 * 8 if is_inside and out.flags.carray else 0


def _sources(
    packed: Bytes, bits: int, n: int, start: int, count: int
) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Return the groups of 8, 4, 2 and 1 bits, one number for eight elements; empty if absent."""
    found = dict.fromkeys((8, 4, 2, 1), packed[:0])
    base = 0
    for group in GROUPS[bits]:
        at = base + start * group // 8
        found[group] = packed[at : at + count * group // 8]
        base += (n * group + 7) // 8
    return found[8].view("<u8"), found[4].view("<u4"), found[2].view("<u2"), found[1]
