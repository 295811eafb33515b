"""Payloads to clients, from any offset on."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fedserver.errors import IdleError, OffsetError, UnknownTaskError
from fedserver.rounds.tasks import TaskDesk
from fedserver.service.broadcasts import Broadcasts
from fedserver.service.exchange import Exchange
from fedserver.service.gathered import Gathered
from fedserver.service.limits import Caller
from fedserver.service.transfers import LARGEST_FRAME, SMALLEST_FRAME
from motley.waiting import Watch, watching
from motley.wire import Frame
from motley.wire.framing import pack_frame
from motley.wire.stubs import federation_pb2

if TYPE_CHECKING:
    from fedserver.service.status import Context


class Downloads:
    """Sends frames, one at a time, to clients that read them."""

    def __init__(self, exchange: Exchange) -> None:
        self._to = exchange
        self._desk, self._broadcasts = TaskDesk(exchange.engine), Broadcasts()
        self._counted = Gathered[tuple[str, int], None](exchange.database, self._count_all)

    async def send(
        self, request: federation_pb2.DownloadRequest, caller: Caller, context: Context
    ) -> None:
        """Send a payload that was offered to this client, from an offset to its end.

        Raises:
            UnknownTaskError: it was not offered to this client, or is no longer kept.
            OffsetError: the payload ends before the offset.
            QuotaError, CrowdedError: later.
            IdleError: the client does not read.
        """
        digest, name = request.sha256.hex(), request.name
        await self._to.database(self._desk.may_download, name, request.task_id, digest)
        await self._to.quota.open(name)

        with writing(context, self._to.guard.limits.idle_seconds) as write:

            async def tell(before: int) -> None:
                await write(pack_frame(Frame(request.offset, b"", 0)))

            with self._to.guard.transfer(caller):
                async with self._to.turns.turn(name, tell):
                    try:
                        await self._send(request, write)
                    except FileNotFoundError:
                        raise UnknownTaskError(
                            f"task {request.task_id} is over, and its payload was removed while "
                            f"this download waited its turn"
                        ) from None

    async def _send(self, request: federation_pb2.DownloadRequest, write: Writer) -> None:
        path = self._to.payloads.path(request.sha256.hex())
        whole = path.stat().st_size
        if request.offset > whole:
            raise OffsetError(
                f"offset {request.offset} of a payload of {whole} bytes; drop what you have of it "
                f"and ask from offset 0"
            )
        wanted = request.frame_bytes or LARGEST_FRAME
        size = min(max(wanted, SMALLEST_FRAME), LARGEST_FRAME)
        sent = 0
        try:
            async with self._broadcasts.reading(path, self._to.files) as packed:
                for offset in range(request.offset, whole, size):
                    count = min(size, whole - offset)
                    async with self._to.memory.holding(size):
                        frame = await self._to.files(packed, offset, count)
                        # Before it is written: a client that has its last byte may end the call.
                        sent += count
                        await self._to.quota.spend(request.name, count)
                        await write(frame)
                    now = self._to.engine.clock.monotonic()
                    self._to.engine.presence.touch(request.name, request.session, now)
        finally:
            # Shielded: the count is part of the record, also of a call that broke off.
            await asyncio.shield(self._count(request, sent))

    async def _count(self, request: federation_pb2.DownloadRequest, sent: int) -> None:
        if sent:
            await self._counted((request.task_id, sent))

    def _count_all(self, sent: Sequence[tuple[str, int]]) -> list[None]:
        totals: Counter[str] = Counter()
        for task_id, count in sent:
            totals[task_id] += count
        self._desk.count_downloads(totals)
        return [None] * len(sent)


class Writer:
    """Writes messages to a stream whose client has to read them."""

    def __init__(self, context: Context, watch: Watch, seconds: float) -> None:
        self._context, self._watch, self._seconds = context, watch, seconds

    async def __call__(self, message: bytes | federation_pb2.UploadReply) -> None:
        """Write one; raise IdleError when the client does not read for too long."""
        try:
            await self._watch.step(self._context.write(message))
        except asyncio.TimeoutError:
            raise IdleError(
                f"nothing was read for {self._seconds:g} s; ask again from where you are"
            ) from None


@contextlib.contextmanager
def writing(context: Context, seconds: float) -> Iterator[Writer]:
    """Give a writer to a stream, for the current task."""
    with watching(seconds) as watch:
        yield Writer(context, watch, seconds)
