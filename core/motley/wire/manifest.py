"""Header and manifest of a payload: the bytes of `docs/wire-format.md`, written and checked."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from motley.errors import EncodingError, PayloadError, TableMismatchError
from motley.wire.encoding import Encoding, Parameters
from motley.wire.encodings import read_encoding
from motley.wire.table import (
    DTYPES,
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    MAX_TENSORS,
    TensorRow,
    TensorTable,
    check_name,
)

MAGIC = b"MOTLEY"
VERSION = 1
ALIGNMENT = 8
MAX_MANIFEST_BYTES = 32 << 20
MAX_BODY_BYTES = 2**40
MOST_ELEMENTS_A_BYTE = 8
"""In named mode."""

_HEADER = struct.Struct("<6sBBIIQ32s")
_TABLE_ENTRY = struct.Struct("<I4BQ")
_NAMED_ENTRY = struct.Struct("<HBB4BQ")
_TABLE_MODE = 1
_NO_DIGEST = bytes(32)

HEADER_BYTES = _HEADER.size


@dataclass(frozen=True)
class Entry:
    """What a manifest says of one tensor."""

    row: TensorRow
    encoding: Encoding
    length: int
    """Bytes of the segment, without padding."""


@dataclass(frozen=True)
class Header:
    """The fixed part at the head of a payload."""

    tensors: int
    manifest_length: int
    body_length: int
    digest: bytes | None
    """Digest of the tensor table; None in named mode."""


def padded(length: int) -> int:
    """Round up to the alignment."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def write_manifest(entries: list[Entry], table: TensorTable | None) -> bytes:
    """Return header and manifest.

    Raises:
        EncodingError: too many tensors or bytes, an unknown or repeated name, or (table mode)
            rows that are not in the table's order or not of its shape and dtype.
    """
    if len(entries) > MAX_TENSORS:
        raise EncodingError(f"{len(entries)} tensors; at most {MAX_TENSORS} fit into a payload")
    lines = _table_entries(entries, table) if table is not None else _named_entries(entries)
    manifest = b"".join(lines)
    body_length = sum(padded(entry.length) for entry in entries)
    if len(manifest) > MAX_MANIFEST_BYTES or body_length > MAX_BODY_BYTES:
        raise EncodingError(
            f"a manifest of {len(manifest)} and a body of {body_length} bytes; "
            f"at most {MAX_MANIFEST_BYTES} and {MAX_BODY_BYTES} fit"
        )
    flags, digest = (0, _NO_DIGEST) if table is None else (_TABLE_MODE, table.digest)
    header = _HEADER.pack(MAGIC, VERSION, flags, len(entries), len(manifest), body_length, digest)
    return header + manifest


def read_header(data: memoryview) -> Header:
    """Parse and check the first 56 bytes of a payload of len(data) bytes.

    Raises:
        PayloadError: they are against the format, or announce another length.
    """
    if len(data) < HEADER_BYTES:
        raise PayloadError(f"{len(data)} bytes are no payload; a header has {HEADER_BYTES}")
    magic, version, flags, tensors, manifest, body, digest = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise PayloadError("not a payload: the magic bytes are missing")
    if version != VERSION:
        raise PayloadError(f"payload version {version}; this side reads {VERSION}")
    if flags & ~_TABLE_MODE:
        raise PayloadError(f"unknown flags {flags:#04x}")
    if tensors > MAX_TENSORS or manifest > MAX_MANIFEST_BYTES or body > MAX_BODY_BYTES:
        raise PayloadError(f"{tensors} tensors, {manifest} + {body} bytes: above the caps")
    if manifest % ALIGNMENT or body % ALIGNMENT:
        raise PayloadError("manifest or body length is not a multiple of 8")
    if HEADER_BYTES + manifest + body != len(data):
        raise PayloadError(
            f"{len(data)} bytes; the header announces {HEADER_BYTES + manifest + body}"
        )
    if not flags and digest != _NO_DIGEST:
        raise PayloadError("a table digest in a payload of named mode")
    return Header(tensors, manifest, body, digest if flags else None)


def read_manifest(data: memoryview, header: Header, table: TensorTable | None) -> list[Entry]:
    """Parse and check the manifest of the payload `data`.

    Raises:
        TableMismatchError: the payload was written against another table, or without one.
        PayloadError: the manifest is against the format.
    """
    manifest = data[HEADER_BYTES : HEADER_BYTES + header.manifest_length]
    own = None if table is None else table.digest
    if header.digest != own:
        raise TableMismatchError(
            f"the payload was written against {_describe(header.digest)}; "
            f"at hand is {_describe(own)}"
        )
    if table is not None:
        entries = _read_table_entries(manifest, header.tensors, table)
    else:
        entries = _read_named_entries(manifest, header.tensors)
    body = sum(padded(entry.length) for entry in entries)
    if body != header.body_length:
        raise PayloadError(f"segments of {body} bytes in a body of {header.body_length}")
    return entries


def _describe(digest: bytes | None) -> str:
    return "no tensor table" if digest is None else f"the tensor table {digest.hex()[:12]}"


def _table_entries(entries: list[Entry], table: TensorTable) -> list[bytes]:
    lines, last = [], -1
    for entry in entries:
        row = entry.row
        if row.name not in table:
            raise EncodingError(f"tensor {row.name!r} is not in the tensor table")
        place = table.index(row.name)
        if table.rows[place] != row:
            raise EncodingError(f"{row} is not as the tensor table has it: {table.rows[place]}")
        if place <= last:
            raise EncodingError(f"tensor {row.name!r} is not in the order of the tensor table")
        last = place
        encoding = entry.encoding
        lines.append(_TABLE_ENTRY.pack(place, encoding.number, *encoding.parameters, entry.length))
    return lines


def _named_entries(entries: list[Entry]) -> list[bytes]:
    lines, seen = [], set()
    for entry in entries:
        row, encoding = entry.row, entry.encoding
        if row.name in seen:
            raise EncodingError(f"tensor {row.name!r} occurs twice")
        seen.add(row.name)
        if _is_inflated(entry):
            raise EncodingError(f"tensor {row.name!r}: {_inflated(entry)}; write it as a bitmap")
        name = check_name(row.name)
        fixed = _NAMED_ENTRY.pack(
            len(name),
            DTYPES.index(row.dtype) + 1,
            len(row.shape),
            encoding.number,
            *encoding.parameters,
            entry.length,
        )
        line = fixed + struct.pack(f"<{len(row.shape)}Q", *row.shape) + name
        lines.append(line.ljust(padded(len(line)), b"\0"))
    return lines


def _read_table_entries(manifest: memoryview, tensors: int, table: TensorTable) -> list[Entry]:
    if len(manifest) != tensors * _TABLE_ENTRY.size:
        raise PayloadError(f"{tensors} tensors in a manifest of {len(manifest)} bytes")
    entries, last = [], -1
    for place, number, p0, p1, p2, length in _TABLE_ENTRY.iter_unpack(manifest):
        if not last < place < len(table):
            raise PayloadError(f"row {place} after row {last} of {len(table)}")
        last = place
        entries.append(_entry(table.rows[place], number, (p0, p1, p2), length))
    return entries


def _read_named_entries(manifest: memoryview, tensors: int) -> list[Entry]:
    entries: list[Entry] = []
    seen: set[str] = set()
    at = 0
    for _ in range(tensors):
        entry, at = _read_named_entry(manifest, at)
        if entry.row.name in seen:
            raise PayloadError(f"tensor {entry.row.name!r} occurs twice")
        seen.add(entry.row.name)
        entries.append(entry)
    if at != len(manifest):
        raise PayloadError(f"{len(manifest) - at} bytes behind the last manifest entry")
    return entries


def _read_named_entry(manifest: memoryview, at: int) -> tuple[Entry, int]:
    dims_at = at + _NAMED_ENTRY.size
    if dims_at > len(manifest):
        raise PayloadError("the manifest ends within an entry")
    size, dtype, dims, number, p0, p1, p2, length = _NAMED_ENTRY.unpack_from(manifest, at)
    name_at = dims_at + 8 * dims
    end = at + padded(name_at + size - at)
    if dims > MAX_DIMENSIONS or not 1 <= size <= MAX_NAME_BYTES or end > len(manifest):
        raise PayloadError(f"an entry of {dims} dimensions and a name of {size} bytes")
    if not 1 <= dtype <= len(DTYPES):
        raise PayloadError(f"dtype number {dtype}; expected 1 to {len(DTYPES)}")
    if any(manifest[name_at + size : end]):
        raise PayloadError("padding behind a name is not 0")
    try:
        name = str(manifest[name_at : name_at + size], "utf-8")
        shape = struct.unpack_from(f"<{dims}Q", manifest, dims_at)
        row = TensorRow(name, shape, DTYPES[dtype - 1])
    except (UnicodeDecodeError, EncodingError) as error:
        raise PayloadError(f"a manifest entry is not valid: {error}") from None
    entry = _entry(row, number, (p0, p1, p2), length)
    if _is_inflated(entry):
        raise PayloadError(f"tensor {name!r}: {_inflated(entry)}")
    return entry, end


def _is_inflated(entry: Entry) -> bool:
    """Tell whether a tensor's size is more than its bytes account for.

    A table says how large tensors are; without one, few bytes must not claim much memory.
    """
    return entry.row.size > MOST_ELEMENTS_A_BYTE * entry.length


def _inflated(entry: Entry) -> str:
    return (
        f"{entry.row.size} elements in {entry.length} bytes; without a tensor table a byte stands "
        f"for at most {MOST_ELEMENTS_A_BYTE}"
    )


def _entry(row: TensorRow, number: int, parameters: Parameters, length: int) -> Entry:
    encoding = read_encoding(number, parameters)
    if not encoding.accepts(row.dtype):
        raise PayloadError(f"tensor {row.name!r} is {row.dtype}; it cannot be in {encoding}")
    try:
        encoding.check_length(length, math.prod(row.shape))
    except PayloadError as error:
        raise PayloadError(f"tensor {row.name!r} has {error}") from None
    return Entry(row, encoding, length)
