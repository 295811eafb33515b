"""Frames of one upload on their way from the socket to the disk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from structlog.stdlib import get_logger

from fedserver.errors import IdleError, ProtocolError
from fedserver.service.transfers import LARGEST_FRAME, FileThreads, FrameMemory
from motley.errors import MotleyError
from motley.waiting import Watch, settled, watching
from motley.wire import Frame, FrameWriter
from motley.wire.stubs import federation_pb2

log = get_logger()

READ_AHEAD = 2
"""Frames of one upload that wait for the disk: as many as a client has under way."""

Requests = AsyncIterator[federation_pb2.UploadMessage | Frame]


class Intake:
    """Reads ahead of the disk, so that what reached this process outlives its connection."""

    def __init__(
        self,
        writer: FrameWriter,
        requests: Requests,
        *,
        memory: FrameMemory,
        files: FileThreads,
        idle_seconds: float,
    ) -> None:
        self._writer, self._requests = writer, requests
        self._memory, self._files, self._idle_seconds = memory, files, idle_seconds
        self._queue: asyncio.Queue[Frame | MotleyError | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(READ_AHEAD)

    async def run(self, written: Callable[[int], Awaitable[None]]) -> bool:
        """Write frames until all are there; return False when the client ends before.

        `written` is awaited after each frame with its size.

        Raises:
            IdleError: nothing came for too long.
            ProtocolError, FrameError: what came is no frame, or does not fit.
            OSError: the disk refused.
        """
        reader = asyncio.create_task(self._read())
        try:
            while self._writer.received < self._writer.size:
                found = await self._queue.get()
                if found is None:
                    return False
                if isinstance(found, MotleyError):
                    raise found
                await self._store(found)
                await written(len(found.data))
            return True
        finally:
            reader.cancel()
            # Handed in before anything is awaited: no second cancellation can come between.
            draining = self._files.start(self._drain, self._queued())
            with contextlib.suppress(asyncio.CancelledError):
                await settled(draining)
            await asyncio.wait({reader})

    async def _store(self, frame: Frame) -> None:
        try:
            await self._files(self._writer.write, frame)
        finally:
            self._free(frame)

    def _free(self, frame: Frame) -> None:
        self._memory.give(len(frame.data))
        self._room.release()

    async def _read(self) -> None:
        """Queue what comes, at last an error or None for the end."""
        try:
            with watching(self._idle_seconds) as watch:
                while True:
                    await self._room.acquire()
                    await self._memory.take(LARGEST_FRAME)
                    size = 0
                    try:
                        frame = await self._next(watch)
                        size = len(frame.data) if frame else 0
                    finally:
                        self._memory.give(LARGEST_FRAME - size)
                    self._queue.put_nowait(frame)
                    if frame is None:
                        return
        except MotleyError as error:
            self._queue.put_nowait(error)
        except Exception as error:  # the stream broke, in one of gRPC's many words for it
            log.debug("upload_broken", reason=repr(error))
            self._queue.put_nowait(None)

    async def _next(self, watch: Watch) -> Frame | None:
        try:
            message = await watch.step(anext(self._requests, None))
        except asyncio.TimeoutError:
            raise IdleError(
                f"nothing came for {self._idle_seconds:g} s; open the upload again to go on"
            ) from None
        if message is None:
            return None
        if not isinstance(message, Frame):
            raise ProtocolError("an upload is opened once, then consists of frames")
        # No client has use for an empty one, which would keep its slot without a byte.
        if not 0 < len(message.data) <= LARGEST_FRAME:
            raise ProtocolError(
                f"a frame of {len(message.data)} bytes; expected 1 to {LARGEST_FRAME}"
            )
        return message

    def _queued(self) -> list[Frame]:
        """Take out the frames that nobody has written yet."""
        frames = []
        while not self._queue.empty():
            found = self._queue.get_nowait()
            if isinstance(found, Frame):
                frames.append(found)
                self._free(found)
        return frames

    def _drain(self, frames: list[Frame]) -> None:
        try:
            for frame in frames:
                self._writer.write(frame)
        except (MotleyError, OSError) as error:
            log.info("frames_dropped", reason=str(error))
