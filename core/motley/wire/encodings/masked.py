"""Values of the kept elements alone, in any other encoding, and which they are; the rest is 0."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from motley.errors import EncodingError, PayloadError
from motley.wire.encoding import Array, Bytes, Encoding, Parameters
from motley.wire.encodings.codebook import Codebook
from motley.wire.encodings.dense import Dense
from motley.wire.encodings.offset import UniformOffset
from motley.wire.encodings.planes import UniformPlanes
from motley.wire.masks import MASKS, Mask, tiles
from motley.wire.packing import TILE
from motley.wire.tensor import EncodedTensor

HEAD = 12
"""Bytes before the mask: number of kept elements, and the encoding of their values."""
KNOWN = 5
"""The kind of a mask that the receiver has: no byte of it travels."""

_VALUES: dict[int, type[Encoding]] = {
    encoding.number: encoding for encoding in (Dense, UniformOffset, UniformPlanes, Codebook)
}


@dataclass(frozen=True)
class Masked(Encoding):
    """Kept elements as a tensor of their own behind their mask.

    Raises:
        EncodingError: there is no such kind of mask.
    """

    number: ClassVar[int] = 5
    name: ClassVar[str] = "masked"

    kind: int
    """How the mask is written: a number of `motley.wire.masks`, or `KNOWN`."""
    known: Mask | None = field(default=None, compare=False)
    """The receiver's own mask where none travels; see `EncodedTensor.under`."""

    def __post_init__(self) -> None:
        if self.kind not in MASKS and self.kind != KNOWN:
            raise EncodingError(f"mask kind {self.kind}; expected 1 to {KNOWN}")

    @property
    def parameters(self) -> Parameters:
        """The kind of the mask."""
        return self.kind, 0, 0

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> Masked:
        """Read the kind of the mask."""
        if any(parameters[1:]):
            raise EncodingError(f"masked with parameters {parameters}")
        return cls(parameters[0])

    def accepts(self, dtype: str) -> bool:
        """Tell whether `dtype` is float32."""
        return dtype == "float32"

    def segment_size(self, n: int) -> int:
        """Return the least length: a segment's own head says the rest."""
        return HEAD + HEAD % 8

    def check_length(self, length: int, n: int) -> None:
        """Check that the head is there; `check_segment` goes by what it says."""
        if length < self.segment_size(n):
            raise PayloadError(f"a segment of {length} bytes has no place for a mask's head")

    def check_segment(self, segment: Bytes, n: int) -> None:
        """Check head, mask and all of the values that does not need every element."""
        kept, known = self.kept(segment, n), self.known
        if known is not None and (known.size, known.kept) != (n, kept.size):
            raise PayloadError(
                f"{kept.size} of {n} elements are kept, and the mask that they are read with "
                f"keeps {known.kept} of {known.size}"
            )

    def decode_slice(self, segment: Bytes, n: int, start: int, out: Array) -> None:
        """Write values where elements are kept, and 0 elsewhere (float32)."""
        mask = self.mask(segment, n)
        values = self.kept(segment, n)
        buffer = np.empty(min(TILE, out.size) + 7, np.float32)
        for first, stop in tiles(out.size):
            places = np.flatnonzero(mask.tile(start + first, start + stop))
            at, count = mask.before(start + first), places.size
            # Packed codes can be read from every eighth on.
            skip = at % 8
            part = buffer[: skip + count]
            values.encoding.decode_slice(values.segment, values.size, at - skip, part)
            block = out[first:stop]
            block[:] = 0
            block[places] = part[skip:]

    def mask(self, segment: Bytes, n: int) -> Mask:
        """Return the mask; raise PayloadError where it is the receiver's and was not given."""
        if self.kind != KNOWN:
            return _read_mask(self.kind, segment, n)[0]
        if self.known is None:
            raise PayloadError(
                "the mask of this tensor does not travel: the receiver has to know it, "
                "and to say so with EncodedTensor.under"
            )
        return self.known

    def kept(self, segment: Bytes, n: int) -> EncodedTensor:
        """Return the values of the kept elements, a tensor [kept]."""
        count, length = _kept_count(segment, n), 0
        if self.kind != KNOWN:
            _, length = _read_mask(self.kind, segment, n)
        at = HEAD + length + -(HEAD + length) % 8
        if segment[HEAD + length : at].any():
            raise PayloadError("padding behind a mask is not 0")
        encoding = _read_values_encoding(segment)
        encoding.check_length(max(0, segment.size - at), count)
        return EncodedTensor(encoding, (count,), "float32", segment[at:])

    def carries_mask(self) -> bool:
        """Tell whether the mask is not the receiver's own."""
        return self.kind != KNOWN

    def under(self, mask: Mask) -> Masked:
        """Return the encoding with the receiver's mask."""
        if self.kind != KNOWN:
            raise EncodingError("the mask of this tensor travels with it")
        return Masked(KNOWN, mask)

    def is_settled(self) -> bool:
        """Tell that neither mask nor values are sure to be valid."""
        return False


def encode_masked(
    values: EncodedTensor, mask: Mask, shape: tuple[int, ...], *, known: bool = False
) -> EncodedTensor:
    """Encode a tensor of which `mask` keeps the elements whose values are given.

    Args:
        values: the kept elements, float32 [mask.kept], in any encoding but this one.
        mask: which they are, in C order.
        shape: of the whole tensor.
        known: whether the receiver has the mask, so that none of it is sent.

    Raises:
        EncodingError: values, mask and shape do not fit each other.
    """
    size = int(np.prod(shape, dtype=np.int64))
    number = values.encoding.number
    if values.shape != (mask.kept,) or mask.size != size or values.dtype != "float32":
        raise EncodingError(
            f"{values.dtype} values {values.shape} under a mask of {mask.kept} of {mask.size} "
            f"elements for a tensor {shape}"
        )
    if number not in _VALUES:
        raise EncodingError(f"values under a mask cannot be in {values.encoding}")
    data = np.empty(0, np.uint8) if known else mask.data()
    padding = np.zeros(-(HEAD + data.size) % 8, np.uint8)
    head = np.empty(HEAD, np.uint8)
    head[:8].view("<u8")[0] = mask.kept
    head[8:] = [number, *values.encoding.parameters]
    segment = np.concatenate([head, data, padding, values.segment])
    encoding = Masked(KNOWN, mask) if known else Masked(mask.kind)
    return EncodedTensor(encoding, shape, "float32", segment)


def _kept_count(segment: Bytes, n: int) -> int:
    count = int(segment[:8].view("<u8")[0])
    if count > n:
        raise PayloadError(f"a mask keeps {count} of {n} elements")
    return count


def _read_mask(kind: int, segment: Bytes, n: int) -> tuple[Mask, int]:
    return MASKS[kind].read(segment[HEAD:], n, _kept_count(segment, n))


def _read_values_encoding(segment: Bytes) -> Encoding:
    number, p0, p1, p2 = (int(byte) for byte in segment[8:HEAD])
    if number not in _VALUES:
        raise PayloadError(f"values under a mask in encoding {number}; expected {sorted(_VALUES)}")
    try:
        encoding = _VALUES[number].from_parameters((p0, p1, p2))
    except EncodingError as error:
        raise PayloadError(f"not a valid encoding under a mask: {error}") from None
    if not encoding.accepts("float32"):
        raise PayloadError(f"values under a mask in {encoding}; they are float32")
    return encoding
