"""Files that are whole or not there: written aside, synced, renamed. And their SHA-256."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

_CHUNK = 1 << 20
_syncs: ContextVar[bool] = ContextVar("syncs", default=True)


@contextmanager
def unsynced() -> Iterator[None]:
    """Leave the files that the block writes to the kernel; those of other threads are synced.

    They then survive the death of the process, but no power cut: right for a simulation, which can
    be run again, and for nothing that others were told is safe.
    """
    token = _syncs.set(False)
    try:
        yield
    finally:
        _syncs.reset(token)


def sync_handle(handle: int) -> None:
    """Bring an open file's content, or a folder's entries, to the disk."""
    if _syncs.get():
        os.fsync(handle)


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """Open a new file beside `target`; it takes target's place when the block succeeds.

    The file and its folder are synced to the disk. On an exception nothing is left behind.
    """
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            sync_handle(stream.fileno())
        put_in_place(Path(name), target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def put_in_place(source: Path, target: Path) -> None:
    """Rename `source` (already synced) to `target` and sync the folder."""
    os.replace(source, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: what was created or renamed in it stays."""
    if not _syncs.get():
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> bytes:
    """Return the SHA-256 (32 bytes) over a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.digest()
