"""The tensor table: names, shapes and dtypes of a model's tensors, as both ends know them.

`docs/wire-format.md` fixes the limits and the text that the digest is taken over.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from motley.errors import EncodingError, PayloadError

DTYPES = ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
"""Types in memory; a type's number in the format is its place here, from 1."""

MAX_TENSORS = 65_536
MAX_NAME_BYTES = 256
MAX_DIMENSIONS = 8
MAX_DIMENSION = 2**32 - 1
MAX_ELEMENTS = 2**40
_CONTROL = bytes([*range(0x20), 0x7F])


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a model.

    Raises:
        EncodingError: name, shape or dtype is outside the limits of the wire format.
    """

    name: str
    shape: tuple[int, ...]
    """Dimensions; () for a 0-d tensor."""
    dtype: str
    """numpy's name of the type in memory, one of `DTYPES`."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_shape(self.shape)
        if self.dtype not in DTYPES:
            raise EncodingError(
                f"tensor {self.name!r} has dtype {self.dtype!r}; expected one of {DTYPES}"
            )

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class TensorTable:
    """Rows in the model's own order, with unique names.

    Raises:
        EncodingError: a name occurs twice, or there are more than 65,536 rows.
    """

    def __init__(self, rows: Iterable[TensorRow]) -> None:
        self.rows: tuple[TensorRow, ...] = tuple(rows)
        self._places = {row.name: place for place, row in enumerate(self.rows)}
        if len(self.rows) > MAX_TENSORS:
            raise EncodingError(f"a table of {len(self.rows)} rows; at most {MAX_TENSORS} fit")
        if len(self._places) != len(self.rows):
            names = [row.name for row in self.rows]
            twice = next(name for name in names if names.count(name) > 1)
            raise EncodingError(f"tensor {twice!r} occurs twice in the table")

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) over the table's canonical text; equal tables have equal digests."""
        lines = ["motley tensor table 1"]
        for row in self.rows:
            lines.append(f"{row.dtype}\t{','.join(map(str, row.shape))}\t{row.name}")
        return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).digest()

    def index(self, name: str) -> int:
        """Return the row number of `name`; raise KeyError when the table has no such row."""
        return self._places[name]

    def __getitem__(self, name: str) -> TensorRow:
        return self.rows[self._places[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[TensorRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorTable) and self.rows == other.rows

    def __hash__(self) -> int:
        return hash(self.rows)

    def __repr__(self) -> str:
        return f"TensorTable({len(self.rows)} rows, digest {self.digest.hex()[:12]})"

    def to_json(self) -> dict[str, object]:
        """Return the table as plain lists, strings and numbers."""
        rows = [[row.name, list(row.shape), row.dtype] for row in self.rows]
        return {"version": 1, "rows": rows}

    @classmethod
    def from_json(cls, value: object) -> TensorTable:
        """Read what `to_json` returned; raise PayloadError when it is something else."""
        if not isinstance(value, dict) or value.get("version") != 1:
            raise PayloadError("not a tensor table: expected an object with version 1 and rows")
        rows = value.get("rows")
        if not isinstance(rows, list):
            raise PayloadError("not a tensor table: rows is not a list")
        try:
            return cls(_row_from_json(row) for row in rows)
        except EncodingError as error:
            raise PayloadError(f"not a tensor table: {error}") from None


def check_name(name: str) -> bytes:
    """Return `name` in UTF-8; raise EncodingError when it is against the wire format."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise EncodingError(f"tensor name {name!r} is not valid Unicode") from None
    if not 1 <= len(encoded) <= MAX_NAME_BYTES:
        raise EncodingError(
            f"tensor name {name[:40]!r} has {len(encoded)} bytes; expected 1 to {MAX_NAME_BYTES}"
        )
    if len(encoded.translate(None, _CONTROL)) < len(encoded):
        raise EncodingError(f"tensor name {name!r} holds a control character")
    return encoded


def check_shape(shape: tuple[int, ...]) -> None:
    """Raise EncodingError when `shape` is against the wire format."""
    if len(shape) > MAX_DIMENSIONS:
        raise EncodingError(f"{len(shape)} dimensions; at most {MAX_DIMENSIONS} are allowed")
    for length in shape:
        if type(length) is not int or not 0 <= length <= MAX_DIMENSION:
            raise EncodingError(
                f"shape {shape}: each dimension is an int from 0 to {MAX_DIMENSION}"
            )
    if math.prod(filter(None, shape)) > MAX_ELEMENTS:
        raise EncodingError(f"shape {shape} has more than 2^40 elements")


def _row_from_json(row: object) -> TensorRow:
    match row:
        case [str(name), list(shape), str(dtype)]:
            return TensorRow(name, tuple(shape), dtype)
        case _:
            raise PayloadError(f"not a table row: {row!r:.80}; expected [name, shape, dtype]")
