"""Payload files: written one tensor at a time, read in place and fully checked."""

from __future__ import annotations

import hashlib
import mmap
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from motley.errors import EncodingError, PayloadError
from motley.wire.durable import replacing
from motley.wire.encoding import Encoding
from motley.wire.manifest import (
    HEADER_BYTES,
    MAGIC,
    Entry,
    padded,
    read_header,
    read_manifest,
    write_manifest,
)
from motley.wire.table import TensorRow, TensorTable
from motley.wire.tensor import EncodedTensor

_CHUNK = 1 << 20


@dataclass(frozen=True)
class PayloadInfo:
    """Size and identity of a payload."""

    sha256: bytes
    """SHA-256 (32 bytes) over the whole packed file: the payload's identity."""
    size: int
    """Bytes of the file."""
    tensors: int
    manifest_bytes: int
    """Bytes of header and manifest."""
    packed_bytes: int
    """Bytes of the segments (packed values, scales, centres), without padding."""


def write_payload(
    target: Path | BinaryIO,
    tensors: Iterable[tuple[str, EncodedTensor]],
    table: TensorTable | None = None,
    layout: Sequence[tuple[TensorRow, Encoding]] | None = None,
) -> PayloadInfo:
    """Write named tensors as one payload: in table mode with `table`, in named mode without.

    A collection (list, tuple, the items of a dict) is written as it stands. From an iterator one
    tensor is held at a time; its body goes through a temporary file, since the manifest stands
    before it, unless `layout` says beforehand what comes. A path gets the
    payload whole (written aside, synced, renamed) or not at all; a stream is written in order
    and left open.

    Raises:
        EncodingError: a name is not valid, not in the table, twice there or not in the table's
            order, a shape or dtype is not the table's, a tensor is not as `layout` says, or a cap
            of the format is exceeded.
    """
    if isinstance(target, Path):
        with replacing(target) as stream:
            return _write(stream, tensors, table, layout, spool_folder=target.parent)
    return _write(target, tensors, table, layout, spool_folder=None)


def is_payload(path: Path) -> bool:
    """Return whether a file begins as a payload does; raise OSError where it cannot be read."""
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


class PayloadReader:
    """An open payload: a mapping from names to encoded tensors.

    A file is mapped into memory, so that only the bytes that are decoded are read; it must not
    be altered meanwhile. Opening checks all but indices, bool bytes and the finiteness of dense
    values.

    Raises:
        TableMismatchError: the payload was written against another table than `table`.
        PayloadError: the bytes are against `docs/wire-format.md`.
        OSError: the file cannot be opened.
    """

    def __init__(
        self, source: Path | bytes | bytearray | memoryview, table: TensorTable | None = None
    ) -> None:
        self._data = _open(source)
        header = read_header(self._data)
        entries = read_manifest(self._data, header, table)
        self._manifest_bytes = HEADER_BYTES + header.manifest_length
        body = np.frombuffer(self._data, np.uint8, offset=0)[self._manifest_bytes :]
        self._tensors: dict[str, EncodedTensor] = {}
        at = 0
        for entry in entries:
            end, next_at = at + entry.length, at + padded(entry.length)
            if body[end:next_at].any():
                raise PayloadError(f"padding behind tensor {entry.row.name!r} is not 0")
            self._tensors[entry.row.name] = _tensor(entry, body[at:end])
            at = next_at

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in the payload's order."""
        return tuple(self._tensors)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._data)

    @cached_property
    def info(self) -> PayloadInfo:
        """Size and identity; the first use hashes the whole payload."""
        return PayloadInfo(
            sha256=hashlib.sha256(self._data).digest(),
            size=len(self._data),
            tensors=len(self._tensors),
            manifest_bytes=self._manifest_bytes,
            packed_bytes=sum(tensor.nbytes for tensor in self._tensors.values()),
        )

    def __getitem__(self, name: str) -> EncodedTensor:
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def items(self) -> Iterable[tuple[str, EncodedTensor]]:
        """Return (name, tensor) pairs in the payload's order."""
        return self._tensors.items()

    def check_finite(self) -> None:
        """Walk all tensors tile by tile; raise PayloadError naming one that is not finite."""
        for name, tensor in self._tensors.items():
            try:
                tensor.check_finite()
            except PayloadError as error:
                raise PayloadError(f"tensor {name!r}: {error}") from None

    def release(self) -> None:
        """Give back the memory of what was read; the file stays mapped and can be read again.

        A file's pages count as this process's as long as they are mapped, though the kernel keeps
        them by itself.
        """
        if isinstance(self._data.obj, mmap.mmap):
            self._data.obj.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the file. Tensors that were handed out keep it mapped and stay valid."""
        self._tensors = {}
        self._data = memoryview(b"")

    def __enter__(self) -> PayloadReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _HashingStream:
    """Passes bytes on and hashes them."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self.sha256.update(data)
        self._stream.write(data)


def _write(
    stream: BinaryIO,
    tensors: Iterable[tuple[str, EncodedTensor]],
    table: TensorTable | None,
    layout: Sequence[tuple[TensorRow, Encoding]] | None,
    spool_folder: Path | None,
) -> PayloadInfo:
    hashing = _HashingStream(stream)
    if layout is not None:
        entries = [
            Entry(row, encoding, encoding.segment_size(row.size)) for row, encoding in layout
        ]
        head = write_manifest(entries, table)
        hashing.write(head)
        _write_as_planned(hashing, tensors, entries)
    elif isinstance(tensors, Collection):
        entries = [_entry(name, tensor) for name, tensor in tensors]
        head = write_manifest(entries, table)
        hashing.write(head)
        for _, tensor in tensors:
            _write_segment(hashing, tensor)
    else:
        with tempfile.TemporaryFile(dir=spool_folder) as spool:
            entries = []
            for name, tensor in tensors:
                entries.append(_entry(name, tensor))
                _write_segment(spool, tensor)
            head = write_manifest(entries, table)
            hashing.write(head)
            spool.seek(0)
            shutil.copyfileobj(spool, hashing, _CHUNK)
    packed = [entry.length for entry in entries]
    return PayloadInfo(
        sha256=hashing.sha256.digest(),
        size=len(head) + sum(map(padded, packed)),
        tensors=len(entries),
        manifest_bytes=len(head),
        packed_bytes=sum(packed),
    )


def _write_as_planned(
    stream: _HashingStream, tensors: Iterable[tuple[str, EncodedTensor]], entries: Sequence[Entry]
) -> None:
    planned = iter(entries)
    for name, tensor in tensors:
        expected = next(planned, None)
        if _entry(name, tensor) != expected:
            raise EncodingError(
                f"tensor {name!r} in {tensor.encoding} comes where the layout has {expected}"
            )
        _write_segment(stream, tensor)
    if (missing := next(planned, None)) is not None:
        raise EncodingError(f"tensor {missing.row.name!r} of the layout did not come")


def _write_segment(stream: _HashingStream | BinaryIO, tensor: EncodedTensor) -> None:
    stream.write(tensor.segment.data)
    stream.write(bytes(padded(tensor.nbytes) - tensor.nbytes))


def _entry(name: str, tensor: EncodedTensor) -> Entry:
    row = TensorRow(name, tensor.shape, tensor.dtype)
    return Entry(row, tensor.encoding, tensor.nbytes)


def _tensor(entry: Entry, segment: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> EncodedTensor:
    try:
        return EncodedTensor(entry.encoding, entry.row.shape, entry.row.dtype, segment)
    except PayloadError as error:
        raise PayloadError(f"tensor {entry.row.name!r}: {error}") from None


def _open(source: Path | bytes | bytearray | memoryview) -> memoryview:
    if not isinstance(source, Path):
        return memoryview(source).cast("B")
    with source.open("rb") as stream:
        if not source.stat().st_size:
            raise PayloadError(f"{source.name} is empty")
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
