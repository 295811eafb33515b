"""The closed set of encodings: how one tensor is put into bytes."""

from __future__ import annotations

from functools import lru_cache

from motley.errors import EncodingError, PayloadError
from motley.wire.encoding import Encoding, Parameters
from motley.wire.encodings.codebook import Codebook
from motley.wire.encodings.dense import Dense
from motley.wire.encodings.lattice import DitheredLattice
from motley.wire.encodings.masked import Masked
from motley.wire.encodings.offset import UniformOffset
from motley.wire.encodings.planes import UniformPlanes

__all__ = [
    "ENCODINGS",
    "ENCODING_NAMES",
    "Codebook",
    "Dense",
    "DitheredLattice",
    "Masked",
    "UniformOffset",
    "UniformPlanes",
    "read_encoding",
]

ENCODINGS: dict[int, type[Encoding]] = {
    encoding.number: encoding
    for encoding in (Dense, UniformOffset, UniformPlanes, Codebook, Masked, DitheredLattice)
}
"""By number in the manifest."""

ENCODING_NAMES = tuple(dict.fromkeys(encoding.name for encoding in ENCODINGS.values()))
"""The words that peers exchange at check-in."""


@lru_cache(maxsize=256)
def read_encoding(number: int, parameters: Parameters) -> Encoding:
    """Return the encoding of a manifest entry; raise PayloadError when there is no such one."""
    if number not in ENCODINGS:
        raise PayloadError(f"encoding {number} is not known; this side knows {sorted(ENCODINGS)}")
    try:
        return ENCODINGS[number].from_parameters(parameters)
    except EncodingError as error:
        raise PayloadError(f"not a valid encoding: {error}") from None
