"""Indices into a few learned centres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from motley.errors import EncodingError, PayloadError
from motley.wire import compiled
from motley.wire.encoding import (
    Array,
    Bytes,
    Encoding,
    Floats,
    Parameters,
    as_floats,
    read_floats,
    write_floats,
)
from motley.wire.encodings.gather import gather
from motley.wire.packing import (
    TILE,
    Codes,
    check_bits,
    pack,
    packed_size,
    unpack,
    unpack_slice,
    unused_bits_are_zero,
)
from motley.wire.tensor import EncodedTensor

_BYTE_TABLES_TO = 2  # bits; whole bytes are looked up faster than single codes in a compiled loop


@dataclass(frozen=True)
class Codebook(Encoding):
    """Indices of `bits` bits into `size` float32 centres, which decode bit for bit.

    Raises:
        EncodingError: `bits` is not 1 to 8, or `size` not 1 to 2^bits.
    """

    number: ClassVar[int] = 4
    name: ClassVar[str] = "codebook"

    bits: int
    size: int
    """Number of centres."""

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if not 1 <= self.size <= 1 << self.bits:
            raise EncodingError(f"{self.size} centres; {self.bits} bits index 1 to 2^{self.bits}")

    @property
    def parameters(self) -> Parameters:
        """The bit-width and the number of centres less one."""
        return self.bits, self.size - 1, 0

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Codebook:
        """Read the bit-width and the number of centres less one."""
        if parameters[2]:
            raise EncodingError(f"codebook with parameters {parameters}")
        return cls(parameters[0], parameters[1] + 1)

    def accepts(self, dtype: str) -> bool:
        """Tell whether `dtype` is float32."""
        return dtype == "float32"

    def segment_size(self, n: int) -> int:
        """Return the bytes of the centres and the packed indices."""
        return 4 * self.size + packed_size(n, self.bits)

    def centres(self, segment: Bytes) -> Floats:
        """Return the centres, float32 [size]."""
        return read_floats(segment, self.size)

    def check_segment(self, segment: Bytes, n: int) -> None:
        """Check the centres and the unused bits."""
        if not np.isfinite(self.centres(segment)).all():
            raise PayloadError("a centre is not finite")
        if not unused_bits_are_zero(segment[4 * self.size :], self.bits, n):
            raise PayloadError("unused bits behind the last index are not 0")

    def decode_slice(self, segment: Bytes, n: int, start: int, out: Array) -> None:
        """Write the centres of a slice's indices (float32)."""
        values, centres = out.view(np.float32), self.centres(segment)
        packed = segment[4 * self.size :]
        if self.bits > _BYTE_TABLES_TO or not self.is_settled():
            done, largest = compiled.look_up(packed, self.bits, n, start, centres, values)
            self._check_index(largest)
            start, values = start + done, values[done:]
        if self.is_settled():
            gather(centres, packed, self.bits, n, start, values)
            return
        codes = np.empty(min(TILE, values.size), np.uint8)
        for first in range(0, values.size, TILE):
            block = values[first : first + TILE]
            unpack_slice(packed, self.bits, n, start + first, codes[: block.size])
            self._check_indices(codes[: block.size])
            np.take(centres, codes[: block.size], mode="clip", out=block)

    def codes(self, segment: Bytes, n: int) -> Codes:
        """Return all indices, uint8 [n]."""
        codes = unpack(segment[4 * self.size :], self.bits, n)
        self._check_indices(codes)
        return codes

    def is_settled(self) -> bool:
        """Tell whether every index has a centre."""
        return self.size == 1 << self.bits

    def _check_indices(self, codes: Codes) -> None:
        if codes.size:
            self._check_index(int(codes.max()))

    def _check_index(self, largest: int) -> None:
        if largest >= self.size:
            raise PayloadError(f"index {largest} into {self.size} centres")


def encode_codebook(indices: Codes, centres: Floats, bits: int | None = None) -> EncodedTensor:
    """Encode indices (uint8, any shape) into `centres` (float32 [m], m = 1 to 256).

    `bits` is the narrowest width that can index m centres when None.

    Raises:
        EncodingError: an index is not below m, a centre is not finite, or `bits` is too narrow.
    """
    encoding = Codebook(
        max(1, (centres.size - 1).bit_length()) if bits is None else bits, centres.size
    )
    values = as_floats(centres)
    if not np.isfinite(values).all():
        raise EncodingError("a centre is not finite")
    if indices.dtype != np.uint8:
        raise EncodingError(f"indices are {indices.dtype}; expected uint8")
    flat = np.asarray(indices, order="C").reshape(-1)
    if flat.size and int(flat.max()) >= encoding.size:
        raise EncodingError(f"index {int(flat.max())} into {encoding.size} centres")
    segment = np.empty(encoding.segment_size(flat.size), np.uint8)
    write_floats(segment, values)
    pack(flat, encoding.bits, out=segment[4 * encoding.size :])
    return EncodedTensor(encoding, indices.shape, "float32", segment)
