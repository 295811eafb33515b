"""The client-facing service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from structlog.stdlib import get_logger

from fedserver.errors import ProtocolError
from fedserver.rounds.driver import Driver
from fedserver.rounds.engine import Engine
from fedserver.rounds.tasks import Arrived, Receipt, TaskDesk, Ticket
from fedserver.rounds.updates import check_update
from fedserver.service.callers import Callers
from fedserver.service.requests import (
    LONGEST_MESSAGE,
    LONGEST_NAME,
    arrival_of,
    checked_metrics,
    checked_seconds,
)
from fedserver.service.status import RefusedError, abort, refusals
from fedserver.storage.database import DatabaseThread
from fedserver.storage.payloads import PayloadStore
from motley import __version__
from motley.errors import UpdateError
from motley.messages import task_to_proto
from motley.wire import Frame, FrameWriter, iter_frames
from motley.wire.stubs import common_pb2, federation_pb2, federation_pb2_grpc

if TYPE_CHECKING:
    from fedserver.service.status import Context

log = get_logger()
T = TypeVar("T")

POLL_SECONDS = 40.0
"""How long a check-in is held; clients expect an answer within 45 s."""
NOTICE_SECONDS = 5.0
"""A client that a run cannot take asks again after so long: its owner may mend it."""
ACKNOWLEDGE_BYTES = 8 * 1024 * 1024
"""An upload is acknowledged at least so often."""
_RECEIPTS = {
    Receipt.ACCEPTED: federation_pb2.UPDATE_STATUS_ACCEPTED,
    Receipt.SURPLUS: federation_pb2.UPDATE_STATUS_SURPLUS,
    Receipt.LATE: federation_pb2.UPDATE_STATUS_LATE,
}


class FederationService(federation_pb2_grpc.FederationServicer):
    """Check-ins, transfers and reports of clients."""

    def __init__(
        self,
        engine: Engine,
        driver: Driver,
        database: DatabaseThread,
        payloads: PayloadStore,
        callers: Callers,
    ) -> None:
        self._callers = callers
        self._engine, self._driver, self._payloads = engine, driver, payloads
        self._database, self._desk = database, TaskDesk(engine)
        # Hashing, checking and writing of updates never run on the event loop.
        self._files = ThreadPoolExecutor(max_workers=2, thread_name_prefix="files")
        self._polls = 0
        self._uploading: dict[str, asyncio.Task[Any]] = {}

    def close(self) -> None:
        """End the file threads."""
        self._files.shutdown(wait=True, cancel_futures=True)

    # --- check-in ----------------------------------------------------------------------------

    async def CheckIn(  # noqa: N802
        self, request: federation_pb2.CheckInRequest, context: Context
    ) -> federation_pb2.CheckInReply:
        """Answer with a task as soon as there is one."""
        try:
            with refusals("CheckIn", request.name), self._callers.admitted(context, request.name):
                return await self._check_in(request)
        except RefusedError as refusal:
            await abort(context, refusal)

    async def _check_in(
        self, request: federation_pb2.CheckInRequest
    ) -> federation_pb2.CheckInReply:
        presence, clock = self._engine.presence, self._engine.clock
        if request.leaving:
            presence.leave(request.name, request.session)
            return federation_pb2.CheckInReply(retry_after_seconds=0.0, server_software=__version__)
        self._polls += 1
        arrival = arrival_of(request, clock.monotonic(), self._polls)
        if presence.arrive(arrival):
            await self._database(self._engine.enrol, arrival)
        reply = federation_pb2.CheckInReply(retry_after_seconds=0.0, server_software=__version__)
        if request.working_on:
            reply.working_on_is_closed = not await self._database(
                self._desk.is_open, request.name, request.working_on
            )
            return reply
        try:
            await self._wait_for_task(request, reply)
        except asyncio.CancelledError:
            # The connection broke while it waited: the name is free at once.
            presence.release(arrival)
            raise
        return reply

    async def _wait_for_task(
        self, request: federation_pb2.CheckInRequest, reply: federation_pb2.CheckInReply
    ) -> None:
        """Hold a check-in until there is a task, a notice, or nothing for `POLL_SECONDS`."""
        clock = self._engine.clock
        end = clock.monotonic() + POLL_SECONDS
        # The first look is unconditional, so that no mistake in memory can starve a client.
        look = True
        while True:
            if look:
                self._driver.looking(request.name)
                task = await self._database(self._desk.next_task, request.name)
                if task is not None:
                    self._driver.found(request.name)
                    reply.task.CopyFrom(task_to_proto(task))
                    return
            reply.notices.extend(await self._database(self._engine.notices, request.name))
            if reply.notices:
                reply.retry_after_seconds = NOTICE_SECONDS
                return
            left = end - clock.monotonic()
            if left <= 0:
                return
            await self._driver.wait_for_work(request.name, left)
            self._alive(request.name, request.session)
            look = self._driver.may_have_work(request.name)

    # --- download ----------------------------------------------------------------------------

    async def Download(  # noqa: N802
        self, request: federation_pb2.DownloadRequest, context: Context
    ) -> AsyncIterator[common_pb2.Frame]:
        """Stream a payload that was offered to this client, from an offset to its end."""
        digest = request.sha256.hex()
        sent = 0
        try:
            with refusals("Download", request.name), self._callers.admitted(context, request.name):
                await self._database(self._desk.may_download, request.name, request.task_id, digest)
                path = self._payloads.path(digest)
                frames = iter_frames(path, request.offset)
                while (frame := await self._on_file_thread(next, frames, None)) is not None:
                    # Before the yield: a client that has its last byte may end the call there.
                    sent += len(frame.data)
                    yield common_pb2.Frame(offset=frame.offset, data=frame.data, crc32=frame.crc32)
                    self._alive(request.name, request.session)
        except RefusedError as refusal:
            await abort(context, refusal)
        finally:
            if sent:
                # Shielded: the count is part of the record, also of a call that broke off.
                await asyncio.shield(
                    self._database(self._desk.count_download, request.task_id, sent)
                )

    def _alive(self, name: str, session: str) -> None:
        self._engine.presence.touch(name, session, self._engine.clock.monotonic())

    # --- upload ------------------------------------------------------------------------------

    async def Upload(  # noqa: N802
        self,
        requests: AsyncIterator[federation_pb2.UploadMessage],
        context: Context,
    ) -> AsyncIterator[federation_pb2.UploadReply]:
        """Take an update from the acknowledged offset on; the last reply is the receipt."""
        try:
            with refusals("Upload", str(context.peer())):
                first = await anext(requests, None)
                if first is None or first.WhichOneof("kind") != "open":
                    raise ProtocolError("an upload begins with its opening message")
                with self._callers.admitted(context, first.open.name):
                    async for reply in self._upload(first.open, requests):
                        yield reply
        except RefusedError as refusal:
            await abort(context, refusal)

    async def _upload(
        self,
        opening: federation_pb2.UploadOpen,
        requests: AsyncIterator[federation_pb2.UploadMessage],
    ) -> AsyncIterator[federation_pb2.UploadReply]:
        digest = opening.payload.sha256.hex()
        ticket = await self._database(
            self._desk.begin_upload, opening.name, opening.task_id, digest
        )
        if isinstance(ticket, Receipt):
            yield _receipt(opening.task_id, ticket, duplicate=ticket is Receipt.ACCEPTED)
            return
        _check_size(opening, ticket)
        me = asyncio.current_task()
        assert me is not None
        while (before := self._uploading.get(opening.task_id)) is not None:
            # A link that died silently: the client is back before we noticed. The newer wins.
            before.cancel()
            await asyncio.wait({before})
        self._uploading[opening.task_id] = me
        try:
            async for reply in self._receive(opening, ticket, requests):
                yield reply
        finally:
            if self._uploading.get(opening.task_id) is me:
                del self._uploading[opening.task_id]

    async def _on_file_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run file work beside the event loop; a cancelled caller still waits for its end."""
        future = asyncio.get_running_loop().run_in_executor(self._files, function, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            if not future.cancelled():
                future.exception()  # seen: nobody is left to be told of it
            raise

    async def _receive(
        self,
        opening: federation_pb2.UploadOpen,
        ticket: Ticket,
        requests: AsyncIterator[federation_pb2.UploadMessage],
    ) -> AsyncIterator[federation_pb2.UploadReply]:
        writer = FrameWriter(self._payloads.incoming(ticket.task_id), opening.payload.size)
        received = 0
        try:
            yield federation_pb2.UploadReply(acknowledged=writer.received)
            acknowledged = writer.received
            while writer.received < opening.payload.size:
                message = await anext(requests, None)
                if message is None:
                    return  # broken off; what came stays for the next try
                if message.WhichOneof("kind") != "frame":
                    raise ProtocolError("an upload is opened once, then consists of frames")
                frame = Frame(message.frame.offset, message.frame.data, message.frame.crc32)
                await self._on_file_thread(writer.write, frame)
                received += len(frame.data)
                self._alive(opening.name, opening.session)
                if writer.received - acknowledged >= ACKNOWLEDGE_BYTES:
                    acknowledged = writer.received
                    yield federation_pb2.UploadReply(acknowledged=acknowledged)
            receipt = await self._settle(opening, ticket, writer, received)
        finally:
            writer.close()
        yield _receipt(ticket.task_id, receipt, duplicate=False)

    async def _settle(
        self,
        opening: federation_pb2.UploadOpen,
        ticket: Ticket,
        writer: FrameWriter,
        received: int,
    ) -> Receipt:
        """Hash, check and store a whole update, then put it on record."""
        whole = await self._on_file_thread(writer.finish, opening.payload.sha256)
        try:
            await self._check(ticket, whole)
        except UpdateError:
            whole.unlink()
            raise
        digest = opening.payload.sha256.hex()
        await self._on_file_thread(self._payloads.adopt, whole, digest)
        return await self._accept(opening, received)

    async def _check(self, ticket: Ticket, whole: Path) -> None:
        try:
            await self._on_file_thread(check_update, whole, ticket)
        except UpdateError as error:
            # The bytes are what the client meant to send, and they are wrong: no use in a retry.
            await self._database(self._desk.reject, ticket.task_id, str(error))
            raise

    async def _accept(self, opening: federation_pb2.UploadOpen, received: int) -> Receipt:
        return await self._database(
            self._desk.accept,
            Arrived(
                task_id=opening.task_id,
                digest=opening.payload.sha256.hex(),
                size=opening.payload.size,
                samples=opening.samples,
                metrics=checked_metrics(opening.metrics),
                seconds=checked_seconds(opening.train_seconds),
                restarted=opening.restarted,
                bytes_up=received,
            ),
        )

    # --- report ------------------------------------------------------------------------------

    async def Report(  # noqa: N802
        self, request: federation_pb2.ReportRequest, context: Context
    ) -> federation_pb2.ReportReply:
        """End a task that sends no payload."""
        try:
            with refusals("Report", request.name), self._callers.admitted(context, request.name):
                return federation_pb2.ReportReply(duplicate=await self._report(request))
        except RefusedError as refusal:
            await abort(context, refusal)

    async def _report(self, request: federation_pb2.ReportRequest) -> bool:
        kind = request.WhichOneof("outcome")
        if kind == "failure":
            failure = request.failure
            return await self._database(
                self._desk.report_failure,
                request.name,
                request.task_id,
                failure.code[:LONGEST_NAME],
                failure.message[:LONGEST_MESSAGE],
                permanent=failure.permanent,
            )
        if kind == "result":
            result = request.result
            return await self._database(
                self._desk.report_result,
                request.name,
                request.task_id,
                checked_metrics(result.metrics),
                checked_seconds(result.seconds),
            )
        raise ProtocolError("a report carries a result or a failure, and this one carries neither")


def _check_size(opening: federation_pb2.UploadOpen, ticket: Ticket) -> None:
    """Refuse an update that cannot be one before its first byte is stored."""
    dense = sum(row.nbytes for row in ticket.table.rows)
    most = 2 * dense + 64 * len(ticket.table.rows) + 4096
    if len(opening.payload.sha256) != 32 or not 0 < opening.payload.size <= most:
        raise ProtocolError(
            f"an update of {opening.payload.size} bytes with a digest of "
            f"{len(opening.payload.sha256)} bytes; expected up to {most} and 32"
        )


def _receipt(task_id: str, receipt: Receipt, *, duplicate: bool) -> federation_pb2.UploadReply:
    message = federation_pb2.Receipt(
        task_id=task_id, status=_RECEIPTS[receipt], duplicate=duplicate
    )
    return federation_pb2.UploadReply(receipt=message)
