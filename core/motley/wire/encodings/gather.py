"""Decoding by look-up: each code becomes its value in a table of 2^k float32 values."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from motley.wire.encoding import Bytes, Floats
from motley.wire.packing import TILE, unpack_slice

_BYTE_WISE = (1, 2, 4)


def gather(values: Floats, packed: Bytes, bits: int, n: int, start: int, out: Floats) -> None:
    """Write values[code] of the elements [start, start + len(out)) into `out`.

    `values` is float32 [2^bits]. At 1, 2 and 4 bits a packed byte becomes its 8, 4 or 2 floats
    in one look-up, without unpacking.
    """
    if bits not in _BYTE_WISE:
        codes = np.empty(min(TILE, out.size), np.uint8)
        for first in range(0, out.size, TILE):
            block = out[first : first + TILE]
            unpack_slice(packed, bits, n, start + first, codes[: block.size])
            np.take(values, codes[: block.size], mode="clip", out=block)
        return
    per_byte = 8 // bits
    table = _byte_table(values.tobytes(), bits)
    at, whole = start * bits // 8, out.size // per_byte
    wide = out[: whole * per_byte].view(table.dtype)
    for first in range(0, whole, TILE):
        part = wide[first : first + TILE]
        np.take(table, packed[at + first : at + first + part.size], mode="clip", out=part)
    if whole * per_byte < out.size:
        last = table[int(packed[at + whole])].reshape(1).view(np.float32)
        out[whole * per_byte :] = last[: out.size - whole * per_byte]


@lru_cache(maxsize=512)
def _byte_table(values: bytes, bits: int) -> npt.NDArray[np.void]:
    """Return the floats of each of the 256 bytes, one wide element a byte (at most 8 KiB)."""
    per_byte = 8 // bits
    fields = np.arange(256)[:, None] >> (bits * np.arange(per_byte))
    floats = np.frombuffer(values, np.float32)[fields & ((1 << bits) - 1)]
    return np.ascontiguousarray(floats).view(f"V{4 * per_byte}").reshape(256)
