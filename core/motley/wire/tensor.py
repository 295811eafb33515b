"""One tensor in its encoding: packed in memory, or lying in an open payload."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from motley.errors import PayloadError
from motley.wire.encoding import Array, Bytes, Encoding, Floats
from motley.wire.packing import TILE

if TYPE_CHECKING:
    from motley.wire.masks import Mask

Reals = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class EncodedTensor:
    """A tensor's bytes and what they mean.

    The encode functions make one; a `PayloadReader` hands out one for each of its tensors.

    Raises:
        PayloadError: the segment's length, scales, centres or unused bits are against
            `docs/wire-format.md`.
    """

    encoding: Encoding
    shape: tuple[int, ...]
    dtype: str
    """numpy's name of the type in memory after decoding."""
    segment: Bytes
    """The packed bytes, uint8 [encoding.segment_size(size)]; read-only."""

    def __post_init__(self) -> None:
        self.encoding.check_length(self.segment.size, self.size)
        if not self.encoding.accepts(self.dtype):
            raise PayloadError(f"a {self.dtype} tensor cannot be in {self.encoding}")
        self.encoding.check_segment(self.segment, self.size)
        read_only = self.segment.view()
        read_only.flags.writeable = False
        object.__setattr__(self, "segment", read_only)

    @cached_property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the segment: packed values, scales and centres."""
        return self.segment.size

    def decode(self, out: Array | None = None) -> Array:
        """Return the values in the tensor's shape and dtype, in `out` when it is given.

        Raises:
            PayloadError: a code or bool byte is against the wire format.
            ValueError: `out` has another shape or dtype, or is not contiguous.
        """
        if out is None:
            out = np.empty(self.shape, self.dtype)
        elif out.shape != self.shape:
            raise ValueError(f"out has shape {out.shape}; expected {self.shape}")
        self.decode_slice(0, self.size, out.reshape(-1) if out.flags.c_contiguous else out)
        return out

    def decode_slice(self, start: int, stop: int, out: Array) -> Array:
        """Write the elements [start, stop), in C order, into `out` and return it.

        `start` is a multiple of `TILE` (65,536); `out` is a contiguous [stop - start] array of
        the tensor's dtype. Only the bytes of these elements are touched.

        Raises:
            PayloadError: a code or bool byte is against the wire format.
            ValueError: the slice or `out` is not as described.
        """
        self._check_slice(start, stop, out)
        self.encoding.decode_slice(self.segment, self.size, start, out)
        return out

    def add_slice(
        self,
        start: int,
        weight: np.floating,
        total: Reals,
        base: Reals | None = None,
    ) -> None:
        """Add weight · (value + base) of the elements from `start` on to `total`.

        Every operation is rounded by itself, in the tensor's own dtype (float32 or float64), as
        with `decode_slice` and numpy. `start` and `total` are as `start` and `out` there; `weight`
        has their dtype, and `base` their shape and dtype.

        Raises:
            PayloadError: a code or bool byte is against the wire format.
            ValueError: the slice, `total` or `base` is not as described.
        """
        self._check_slice(start, start + total.size, total)
        if base is not None:
            self._check_out(base, total.size)
        done = 0
        if self.dtype == "float32":
            added = total[:0] if base is None else base
            done = self.encoding.add_slice(self.segment, self.size, start, weight, added, total)
        if done < total.size:
            values = np.empty(total.size - done, total.dtype)
            self.encoding.decode_slice(self.segment, self.size, start + done, values)
            if base is not None:
                values += base[done:]
            values *= weight
            total[done:] += values

    def _check_slice(self, start: int, stop: int, out: Array) -> None:
        if start % TILE or not 0 <= start <= stop <= self.size:
            raise ValueError(f"slice [{start}, {stop}) of {self.size} elements, tile {TILE}")
        self._check_out(out, stop - start)

    def _check_out(self, out: Array, count: int) -> None:
        if out.shape != (count,) or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"out is {out.dtype} {out.shape}; expected contiguous {self.dtype} [{count}]"
            )

    def codes(self) -> Array:
        """Return the codes in the tensor's shape: uint8, or int16 in the planes layout.

        Raises:
            EncodingError: the encoding has no codes.
            PayloadError: an index has no centre.
        """
        return self.encoding.codes(self.segment, self.size).reshape(self.shape)

    @property
    def centres(self) -> Floats:
        """Centres of a codebook tensor, float32 [m]; EncodingError for other encodings."""
        return self.encoding.centres(self.segment)

    @property
    def scale(self) -> tuple[np.float32, np.float32]:
        """(low, step) of a uniform tensor, low = 0 in the planes layout; else EncodingError."""
        return self.encoding.scale(self.segment)

    @property
    def mask(self) -> Mask | None:
        """Which elements are kept; None where all are.

        Raises:
            PayloadError: the mask does not travel and was not given with `under`.
        """
        return self.encoding.mask(self.segment, self.size)

    @property
    def kept(self) -> EncodedTensor | None:
        """The values under the mask, a tensor [kept]; None where there is no mask."""
        return self.encoding.kept(self.segment, self.size)

    def under(self, mask: Mask) -> EncodedTensor:
        """Return the tensor with the mask that did not travel.

        Raises:
            EncodingError: it has a mask, or needs none.
            PayloadError: the mask is of another size, or keeps another number of elements.
        """
        return EncodedTensor(self.encoding.under(mask), self.shape, self.dtype, self.segment)

    def _check_mask(self) -> None:
        mask = self.mask
        if mask is not None:
            for start in range(0, self.size, TILE):
                mask.tile(start, min(start + TILE, self.size))

    def check_finite(self) -> None:
        """Walk the tensor tile by tile; raise PayloadError at an element that is not finite.

        Masks, indices and bool bytes are checked by the way; where the mask does not travel,
        the values alone.
        """
        if self.encoding.is_settled():
            return
        kept = self.kept
        if kept is not None:
            if self.encoding.carries_mask():
                self._check_mask()
            kept.check_finite()
            return
        buffer = np.empty(min(TILE, self.size), self.dtype)
        for start in range(0, self.size, TILE):
            tile = buffer[: min(TILE, self.size - start)]
            self.decode_slice(start, start + tile.size, tile)
            if not np.isfinite(tile).all():
                place = start + int(np.argmin(np.isfinite(tile)))
                raise PayloadError(f"element {place} is {tile[place - start]}, not finite")
