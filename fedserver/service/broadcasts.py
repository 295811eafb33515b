"""Broadcasts in frames: what clients fetch at about the same time is read and packed once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fedserver.service.transfers import FileThreads
from motley.waiting import settled
from motley.wire import Frame
from motley.wire.framing import pack_frame

HELD_BYTES = 32 << 20
"""Of packed frames that stay for others while anybody downloads."""

_Key = tuple[str, int, int]


class Broadcasts:
    """The newest packed frames of payloads that are being sent, for file threads to ask for."""

    def __init__(self, most: int = HELD_BYTES) -> None:
        """Hold up to `most` bytes; nothing once the last reader has gone."""
        self._most, self._bytes, self._readers = most, 0, 0
        self._held: OrderedDict[_Key, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._bytes

    @contextlib.asynccontextmanager
    async def reading(
        self, path: Path, files: FileThreads
    ) -> AsyncIterator[Callable[[int, int], bytes]]:
        """Give what returns the packed frame of a payload file at (offset, bytes of data).

        Files are named by their digests, so that one name has one content.
        """
        file = await _opened(path, files)
        with self._lock:
            self._readers += 1
        try:
            yield lambda offset, size: self._frame(file, (path.name, offset, size))
        finally:
            with self._lock:
                self._readers -= 1
                if not self._readers:
                    self._held.clear()
                    self._bytes = 0
            # The last handle of a file that was removed frees all of it.
            await files(os.close, file)

    def _frame(self, file: int, key: _Key) -> bytes:
        with self._lock:
            if (found := self._held.get(key)) is not None:
                self._held.move_to_end(key)
                return found
        _, offset, size = key
        data = os.pread(file, size, offset)
        packed = pack_frame(Frame(offset, data, zlib.crc32(data)))
        with self._lock:
            if key not in self._held:
                self._held[key] = packed
                self._bytes += len(packed)
            while self._bytes > self._most:
                self._bytes -= len(self._held.popitem(last=False)[1])
        return packed


async def _opened(path: Path, files: FileThreads) -> int:
    """Return a handle of a file; whoever is cancelled while it opens leaves none behind."""
    opening = files.start(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return await settled(opening)
    except asyncio.CancelledError:
        if not opening.cancelled() and opening.exception() is None:
            await files(os.close, opening.result())
        raise
