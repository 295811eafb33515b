"""What every encoding can do with the bytes of one tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from motley.errors import EncodingError, PayloadError

if TYPE_CHECKING:
    from motley.wire.masks import Mask
    from motley.wire.tensor import EncodedTensor

Array = npt.NDArray[np.generic]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Parameters = tuple[int, int, int]


class Encoding(ABC):
    """How one tensor is put into bytes. Subclasses are frozen and hold nothing but parameters.

    `segment` is a tensor's bytes (uint8 [segment_size(n)]) and `n` its number of elements.
    """

    number: ClassVar[int]
    """The encoding's number in a manifest."""
    name: ClassVar[str]
    """The word that peers exchange at check-in; both uniform layouts share one."""

    @property
    @abstractmethod
    def parameters(self) -> Parameters:
        """The three parameter bytes of a manifest entry."""

    @classmethod
    @abstractmethod
    def from_parameters(cls, parameters: Parameters) -> Encoding:
        """Read a manifest entry's parameters.

        Raises:
            EncodingError: they are outside of what the wire format allows.
        """

    @abstractmethod
    def accepts(self, dtype: str) -> bool:
        """Tell whether tensors of this type in memory can be in this encoding."""

    @abstractmethod
    def segment_size(self, n: int) -> int:
        """Return the length in bytes of a tensor's segment."""

    def check_length(self, length: int, n: int) -> None:
        """Raise PayloadError unless a segment of `length` bytes can hold `n` elements."""
        expected = self.segment_size(n)
        if length != expected:
            raise PayloadError(
                f"a segment of {length} bytes, where {n} elements in {self} has {expected}"
            )

    @abstractmethod
    def check_segment(self, segment: Bytes, n: int) -> None:
        """Check all that does not need every element: scales, centres, unused bits.

        Raises:
            PayloadError: the bytes are against the wire format.
        """

    @abstractmethod
    def decode_slice(self, segment: Bytes, n: int, start: int, out: Array) -> None:
        """Write the elements [start, start + len(out)) into `out`, in the tensor's own dtype.

        `start` is a multiple of 8; under a mask, of `TILE`.

        Raises:
            PayloadError: an element is against the wire format.
        """

    def add_slice(
        self, segment: Bytes, n: int, start: int, weight: np.float32, base: Floats, total: Floats
    ) -> int:
        """Add weight · (value + base) to the head of `total`; return of how many elements.

        A short cut past `decode_slice` with the same result, bit for bit: 0 where an encoding has
        none, or not here. `base` is as long as `total`, or empty and then not added.
        """
        return 0

    def codes(self, segment: Bytes, n: int) -> Array:
        """Return all codes [n]: uint8, or int16 in the planes layout.

        Raises:
            EncodingError: this encoding has no codes.
            PayloadError: a code is against the wire format.
        """
        raise EncodingError(f"{self.name} tensors have no codes; decode them")

    def scale(self, segment: Bytes) -> tuple[np.float32, np.float32]:
        """Return (low, step); raise EncodingError when the encoding has none."""
        raise EncodingError(f"{self.name} tensors have no scale")

    def centres(self, segment: Bytes) -> Floats:
        """Return the centres, float32 [m]; raise EncodingError when the encoding has none."""
        raise EncodingError(f"{self.name} tensors have no centres")

    def mask(self, segment: Bytes, n: int) -> Mask | None:
        """Return which elements are kept; None where all are.

        Raises:
            PayloadError: the mask does not travel, and this side was not told it.
        """
        return None

    def kept(self, segment: Bytes, n: int) -> EncodedTensor | None:
        """Return the values under the mask as a tensor [kept]; None where there is no mask."""
        return None

    def carries_mask(self) -> bool:
        """Tell whether a mask travels in the segment."""
        return False

    def under(self, mask: Mask) -> Encoding:
        """Return this encoding with a mask that does not travel; raise EncodingError otherwise."""
        raise EncodingError(f"{self.name} tensors take no mask")

    def is_settled(self) -> bool:
        """Tell whether every element of a checked segment is valid and finite."""
        return True


def read_floats(segment: Bytes, count: int) -> Floats:
    """Return the `count` float32 numbers at the head of a segment."""
    return segment[: 4 * count].view("<f4").astype(np.float32)


def write_floats(segment: Bytes, values: Floats) -> None:
    """Put float32 numbers at the head of a segment."""
    segment[: 4 * values.size].view("<f4")[:] = values


def check_scale(low: np.float32, step: np.float32, levels: int) -> None:
    """Raise PayloadError unless every value low + code · step, code 0 to `levels`, is finite."""
    if not (np.isfinite(low) and np.isfinite(step) and step >= 0):
        raise PayloadError(f"low {low} and step {step}; expected finite numbers, step >= 0")
    with np.errstate(over="ignore"):
        top = low + np.float32(levels) * step
    if not np.isfinite(top):
        raise PayloadError(f"low {low} and step {step}: code {levels} would not be finite")


def as_floats(array: Array) -> Floats:
    """Return a float32 array's values in C order as [n]; EncodingError for another dtype."""
    if array.dtype != np.float32:
        raise EncodingError(f"values are {array.dtype}; expected float32")
    return np.asarray(array, np.float32, order="C").reshape(-1)
