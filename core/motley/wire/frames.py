"""Payload files in frames: cut at any offset, put together again after any break."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import ClassVar, NamedTuple

from motley.errors import PayloadError
from motley.wire.durable import file_sha256, put_in_place, sync_handle

FRAME_SIZE = 1 << 20
"""Bytes of data in a frame: the size that gRPC streams fastest."""


class FrameError(PayloadError):
    """A frame does not fit: wrong offset, damaged data, or more than was announced."""

    number = "M0104"
    code: ClassVar[str] = "frame"


class Frame(NamedTuple):
    """A piece of a payload file."""

    offset: int
    data: bytes | memoryview
    crc32: int
    """zlib's CRC-32 over `data`."""


def iter_frames(path: Path, offset: int = 0, frame_size: int = FRAME_SIZE) -> Iterator[Frame]:
    """Yield the frames of a file from `offset` to its end; none when it is already there.

    Raises:
        FrameError: `offset` is outside of the file.
        ValueError: `frame_size` is not positive.
    """
    if frame_size < 1:
        raise ValueError(f"frame_size {frame_size}; expected at least 1 byte")
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if not 0 <= offset <= size:
            raise FrameError(f"offset {offset} of a file of {size} bytes")
        stream.seek(offset)
        while data := stream.read(frame_size):
            yield Frame(offset, data, zlib.crc32(data))
            offset += len(data)


class FrameWriter:
    """Puts the frames of one file together in `TARGET.part`, which survives a restart.

    An existing partial file is continued at its length. Close the writer, or use it in a `with`
    block; both leave the partial file for the next time.
    """

    def __init__(self, target: Path, size: int) -> None:
        """Open or create the partial file of `target`, which will have `size` bytes."""
        if size < 0:
            raise FrameError(f"announced size {size}; expected 0 or more")
        self._target, self._size = target, size
        self._partial = partial_path(target)
        self._stream = self._partial.open("ab", buffering=0)
        self._received = self._stream.tell()
        if self._received > size:
            # Left over from other bytes of that name: no offset in it can be right.
            self._stream.truncate(0)
            self._received = 0
        self._digest, self._hashed = hashlib.sha256(), 0

    @property
    def received(self) -> int:
        """Bytes that are there: the offset of the frame that is expected next."""
        return self._received

    @property
    def size(self) -> int:
        """Bytes that were announced."""
        return self._size

    def write(self, frame: Frame) -> int:
        """Append a frame and return the new `received`.

        Raises:
            FrameError: wrong offset, wrong checksum, or beyond the announced size; nothing of
                the frame is kept.
            OSError: the disk refused; nothing of the frame is kept.
        """
        if frame.offset != self._received:
            raise FrameError(f"a frame at offset {frame.offset}; expected {self._received}")
        if frame.offset + len(frame.data) > self._size:
            raise FrameError(
                f"a frame up to {frame.offset + len(frame.data)} of {self._size} announced bytes"
            )
        if zlib.crc32(frame.data) != frame.crc32:
            raise FrameError(f"the frame at offset {frame.offset} was damaged on its way")
        self._append(frame.data)
        return self._received

    def sync(self) -> None:
        """Bring what was received to the disk: it then survives a power cut."""
        sync_handle(self._stream.fileno())

    def finish(self, sha256: bytes, *, sync: bool = True) -> Path:
        """Do what `verify` does, rename the file to the target and return that.

        Raises:
            FrameError, PayloadError: as `verify`.
        """
        whole = self.verify(sha256, sync=sync)
        if sync:
            put_in_place(whole, self._target)
        else:
            os.replace(whole, self._target)
        return self._target

    def verify(self, sha256: bytes, *, sync: bool = True) -> Path:
        """Sync the whole file, compare its SHA-256 and return where it lies: in its partial place.

        What came since this writer was opened was hashed as it came. Without `sync` a power cut may
        leave other bytes under the same name: right for what is fetched again and checked before.

        Raises:
            FrameError: bytes are missing; the partial file stays.
            PayloadError: another SHA-256; the partial file is removed, since nobody can tell
                which part of it is wrong.
        """
        if self._received != self._size:
            raise FrameError(f"{self._received} of {self._size} announced bytes are there")
        if sync:
            self.sync()
        # A file of another length was written by somebody else too: look at what is there.
        is_hashed = self._hashed == self._size == os.fstat(self._stream.fileno()).st_size
        self.close()
        found = self._digest.digest() if is_hashed else file_sha256(self._partial)
        if found != sha256:
            self.discard()
            raise PayloadError(
                f"the file has SHA-256 {found.hex()}; announced was {sha256.hex()}. "
                "It was removed; send it again from offset 0"
            )
        return self._partial

    def close(self) -> None:
        """Close the partial file and keep it."""
        self._stream.close()

    def discard(self) -> None:
        """Close the partial file and remove it: what came is of no use."""
        self.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, data: bytes | memoryview) -> None:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._stream.write(rest) :]
        except OSError:
            os.ftruncate(self._stream.fileno(), self._received)
            raise
        if self._hashed == self._received:
            self._digest.update(data)
            self._hashed += len(data)
        self._received += len(data)


def partial_path(target: Path) -> Path:
    """Return where a `FrameWriter` keeps the bytes of `target` that came so far."""
    return target.with_name(f"{target.name}.part")
