"""k-bit codes to bytes and back, whole or from any tile on.

A code is cut into groups of 8, 4, 2 or 1 bits, beginning at its low end; each group lies packed
over the whole tensor ("Packed codes" in `docs/wire-format.md`). All work goes in blocks of 64 Ki
codes, so that the scratch stays in the cache.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from motley.errors import EncodingError, PayloadError

Codes = npt.NDArray[np.uint8]

TILE = 65_536
"""Elements of a tile: slices start at multiples of it."""

GROUPS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
"""Bits of the groups that a code of so many bits is cut into, from its low end on."""

# x · _GATHER brings the two low bits of the four bytes of x together in the top byte.
_GATHER = np.uint32(2**24 + 2**18 + 2**12 + 2**6)


def check_bits(bits: int) -> None:
    """Raise EncodingError when `bits` is not 1 to 8."""
    if bits not in GROUPS:
        raise EncodingError(f"bit-width {bits}; expected 1 to 8")


def packed_size(n: int, bits: int) -> int:
    """Return the bytes that `n` codes of `bits` bits take."""
    size = 0
    for group in GROUPS[bits]:
        size += (n * group + 7) // 8
    return size


def pack(codes: Codes, bits: int, out: Codes | None = None) -> Codes:
    """Pack `codes` (uint8 [n]) into uint8 [packed_size(n, bits)].

    Raises:
        EncodingError: bits is not 1 to 8, or a code does not fit into them.
        ValueError: `out` is not uint8 of that length.
    """
    check_bits(bits)
    if codes.dtype != np.uint8 or codes.ndim != 1:
        raise EncodingError(f"codes are {codes.dtype} {codes.shape}; expected uint8 [n]")
    codes = np.ascontiguousarray(codes)
    packed = _output(packed_size(codes.size, bits), out)
    pack_slice(codes, bits, codes.size, 0, packed)
    return packed


def pack_slice(codes: Codes, bits: int, n: int, start: int, packed: Codes) -> None:
    """Pack the elements [start, start + len(codes)) of a tensor of `n` codes into `packed`.

    `start` is a multiple of `TILE`, and `packed` (uint8 [packed_size(n, bits)]) is the whole
    tensor's. The slice ends at a multiple of 8 or with the tensor.

    Raises:
        EncodingError: a code does not fit into `bits`.
    """
    for first in range(0, codes.size, TILE):
        block = codes[first : first + TILE]
        if bits < 8 and int(block.max()) >> bits:
            raise EncodingError(f"code {int(block.max())} does not fit into {bits} bits")
        _pack_block(block, bits, n, start + first, packed)


def unpack(packed: Codes, bits: int, n: int, out: Codes | None = None) -> Codes:
    """Return the `n` codes (uint8 [n]) that `packed` (uint8 [packed_size(n, bits)]) holds.

    Raises:
        PayloadError: `packed` is not uint8 of that length.
        ValueError: `out` is not uint8 [n].
    """
    check_bits(bits)
    size = packed_size(n, bits)
    if packed.dtype != np.uint8 or packed.shape != (size,):
        raise PayloadError(
            f"{packed.dtype} {packed.shape} for {n} codes of {bits} bits; expected uint8 [{size}]"
        )
    codes = _output(n, out)
    unpack_slice(packed, bits, n, 0, codes)
    return codes


def unpack_slice(packed: Codes, bits: int, n: int, start: int, out: Codes) -> None:
    """Write the codes of the elements [start, start + len(out)) into `out` (uint8).

    `start` is a multiple of 8, and `packed` (uint8 [packed_size(n, bits)]) is the whole tensor's.
    """
    scratch = np.empty(TILE if len(GROUPS[bits]) > 1 else 0, np.uint8)
    for first in range(0, out.size, TILE):
        block = out[first : first + TILE]
        base = shift = 0
        for group in GROUPS[bits]:
            at = base + (start + first) * group // 8
            fields = scratch[: block.size] if shift else block
            _unpack_group(packed[at : at + (block.size * group + 7) // 8], group, fields)
            if shift:
                words, moved = _words(block), _words(fields)
                np.left_shift(moved, moved.dtype.type(shift), out=moved)
                np.bitwise_or(words, moved, out=words)
            base += (n * group + 7) // 8
            shift += group


def unused_bits_are_zero(packed: Codes, bits: int, n: int) -> bool:
    """Tell whether the bits behind the last code of every group are 0."""
    base = 0
    for group in GROUPS[bits]:
        base += (n * group + 7) // 8
        used = n * group % 8
        if used and int(packed[base - 1]) >> used:
            return False
    return True


def _output(size: int, out: Codes | None) -> Codes:
    if out is None:
        return np.empty(size, np.uint8)
    if out.dtype != np.uint8 or out.shape != (size,) or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype} {out.shape}; expected contiguous uint8 [{size}]")
    return out


def _pack_block(block: Codes, bits: int, n: int, start: int, packed: Codes) -> None:
    base = shift = 0
    for group in GROUPS[bits]:
        fields = block
        if len(GROUPS[bits]) > 1:
            words = _words(block)
            mask = int.from_bytes(bytes([(1 << group) - 1]) * words.itemsize, "little")
            moved = np.right_shift(words, words.dtype.type(shift))
            np.bitwise_and(moved, words.dtype.type(mask), out=moved)
            fields = moved.view(np.uint8)
        at = base + start * group // 8
        _pack_group(fields, group, packed[at : at + (block.size * group + 7) // 8])
        base += (n * group + 7) // 8
        shift += group


def _words(codes: Codes) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint64]:
    """View codes eight at a time where their number allows it: shifts are far faster so."""
    return codes if codes.size % 8 else codes.view(np.uint64)


def _pack_group(fields: Codes, group: int, out: Codes) -> None:
    if group == 1:
        out[:] = np.packbits(fields, bitorder="little")
        return
    if fields.size % 8:
        padded = np.zeros(fields.size + 8 - fields.size % 8, np.uint8)
        padded[: fields.size] = fields
        whole = np.empty(padded.size * group // 8, np.uint8)
        _pack_whole(padded, group, whole)
        out[:] = whole[: out.size]
    else:
        _pack_whole(fields, group, out)


def _pack_whole(fields: Codes, group: int, out: Codes) -> None:
    if group == 2:
        four = np.multiply(fields.view("<u4"), _GATHER)
        np.right_shift(four, np.uint32(24), out=four)
        np.copyto(out, four, casting="unsafe")
    elif group == 4:
        pairs = fields.view("<u2")
        folded = np.right_shift(pairs, np.uint16(4))
        np.bitwise_or(folded, pairs, out=folded)
        np.copyto(out, folded, casting="unsafe")
    else:
        np.copyto(out, fields)


def _unpack_group(packed: Codes, group: int, out: Codes) -> None:
    if group == 8:
        np.copyto(out, packed)
    elif group == 1:
        out[:] = np.unpackbits(packed, count=out.size, bitorder="little")
    else:
        whole = out.size * group // 8
        split = whole * 8 // group
        _unpack_whole(packed[:whole], group, out[:split])
        if split < out.size:
            last = np.empty(8 // group, np.uint8)
            _unpack_whole(packed[whole:], group, last)
            out[split:] = last[: out.size - split]


def _unpack_whole(packed: Codes, group: int, out: Codes) -> None:
    if group == 4:
        low = packed.astype("<u2")
        high = np.left_shift(low, np.uint16(4))
        np.bitwise_or(low, high, out=low)
        np.bitwise_and(low, np.uint16(0x0F0F), out=out.view("<u2"))
    else:
        four = packed.astype("<u4")
        high4 = np.left_shift(four, np.uint32(12))
        np.bitwise_or(four, high4, out=four)
        np.bitwise_and(four, np.uint32(0x000F000F), out=four)
        np.left_shift(four, np.uint32(6), out=high4)
        np.bitwise_or(four, high4, out=four)
        np.bitwise_and(four, np.uint32(0x03030303), out=out.view("<u4"))
