"""Payloads to clients, from any offset on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from fedserver.errors import IdleError
from fedserver.rounds.engine import Engine
from fedserver.rounds.tasks import TaskDesk
from fedserver.service.limits import Caller, Guard
from fedserver.service.quota import Quota
from fedserver.service.transfers import (
    LARGEST_FRAME,
    SMALLEST_FRAME,
    FileThreads,
    FrameMemory,
    Turns,
)
from fedserver.storage.database import DatabaseThread
from fedserver.storage.payloads import PayloadStore
from motley.wire import iter_frames
from motley.wire.stubs import common_pb2, federation_pb2

if TYPE_CHECKING:
    from fedserver.service.status import Context


class Downloads:
    """Sends frames, one at a time, to clients that read them."""

    def __init__(
        self,
        engine: Engine,
        database: DatabaseThread,
        payloads: PayloadStore,
        *,
        guard: Guard,
        quota: Quota,
        turns: Turns,
        memory: FrameMemory,
        files: FileThreads,
    ) -> None:
        self._engine, self._database, self._payloads = engine, database, payloads
        self._desk = TaskDesk(engine)
        self._guard, self._quota = guard, quota
        self._turns, self._memory, self._files = turns, memory, files

    async def send(
        self, request: federation_pb2.DownloadRequest, caller: Caller, context: Context
    ) -> None:
        """Send a payload that was offered to this client, from an offset to its end.

        Raises:
            UnknownTaskError: it was not offered to this client.
            QuotaError, CrowdedError: later.
            IdleError: the client does not read.
        """
        digest, name = request.sha256.hex(), request.name
        await self._database(self._desk.may_download, name, request.task_id, digest)
        await self._quota.open(name)

        async def tell(before: int) -> None:
            await self._write(context, common_pb2.Frame(offset=request.offset))

        with self._guard.transfer(caller):
            async with self._turns.turn(name, tell):
                await self._send(request, context)

    async def _send(self, request: federation_pb2.DownloadRequest, context: Context) -> None:
        path = self._payloads.path(request.sha256.hex())
        wanted = request.frame_bytes or LARGEST_FRAME
        size = min(max(wanted, SMALLEST_FRAME), LARGEST_FRAME)
        frames, sent = iter_frames(path, request.offset, size), 0
        try:
            while True:
                await self._memory.take(size)
                try:
                    frame = await self._files(next, frames, None)
                    if frame is None:
                        return
                    # Before it is written: a client that has its last byte may end the call there.
                    sent += len(frame.data)
                    await self._quota.spend(request.name, len(frame.data))
                    await self._write(
                        context,
                        common_pb2.Frame(offset=frame.offset, data=frame.data, crc32=frame.crc32),
                    )
                finally:
                    self._memory.give(size)
                now = self._engine.clock.monotonic()
                self._engine.presence.touch(request.name, request.session, now)
        finally:
            # Shielded: the count is part of the record, also of a call that broke off.
            await asyncio.shield(self._count(request, sent))

    async def _count(self, request: federation_pb2.DownloadRequest, sent: int) -> None:
        if sent:
            await self._database(self._desk.count_download, request.task_id, sent)
        await self._quota.save(request.name)

    async def _write(self, context: Context, frame: common_pb2.Frame) -> None:
        await write_within(context, frame, self._guard.limits.idle_seconds)


async def write_within(context: Context, message: object, seconds: float) -> None:
    """Write a message to a stream; raise IdleError when the client does not read for so long."""
    writing = asyncio.ensure_future(context.write(message))
    try:
        done, _ = await asyncio.wait({writing}, timeout=seconds)
    except asyncio.CancelledError:
        writing.cancel()
        raise
    if not done:
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({writing}, timeout=1.0)
        raise IdleError(f"nothing was read for {seconds:g} s; ask again from where you are")
    writing.result()
