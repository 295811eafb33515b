"""Updates from clients, from the acknowledged offset on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fedserver.errors import CrowdedError, ProtocolError
from fedserver.rounds.standing import Standing
from fedserver.rounds.tasks import Arrived, Findings, Receipt, TaskDesk, Ticket
from fedserver.rounds.updates import check_update
from fedserver.service.exchange import Exchange
from fedserver.service.gathered import Gathered
from fedserver.service.intake import Intake, Requests
from fedserver.service.limits import Caller
from fedserver.service.requests import checked_metrics, checked_seconds
from fedserver.service.transfers import SIGN_OF_LIFE_SECONDS
from motley.errors import UpdateError
from motley.waiting import settled
from motley.wire import FrameWriter
from motley.wire.stubs import federation_pb2

T = TypeVar("T")

PENDING_SECONDS = 60.0
"""A client with too many unfinished updates is told to come back after so long."""
_STATUS = {
    Receipt.ACCEPTED: federation_pb2.UPDATE_STATUS_ACCEPTED,
    Receipt.SURPLUS: federation_pb2.UPDATE_STATUS_SURPLUS,
    Receipt.LATE: federation_pb2.UPDATE_STATUS_LATE,
}

Reply = Callable[[federation_pb2.UploadReply], Awaitable[None]]


class Uploads:
    """Takes frames, acknowledges each once it is written, and gives receipts."""

    def __init__(self, exchange: Exchange) -> None:
        self._to = exchange
        self._desk, self._standing = TaskDesk(exchange.engine), Standing(exchange.engine)
        self._uploading: dict[str, asyncio.Task[Any]] = {}
        # What arrives while the database thread is busy shares a commit and its sync.
        self._record = Gathered[Arrived, Receipt | Exception](exchange.database, self._accept_all)

    async def take(
        self, opening: federation_pb2.UploadOpen, caller: Caller, requests: Requests, reply: Reply
    ) -> None:
        """Take an update; the last reply is its receipt.

        Raises:
            UnknownTaskError, ProtocolError, FrameError, PayloadError, UpdateError: refused.
            QuotaError, CrowdedError: later.
            IdleError: nothing came.
        """
        digest, task_id = opening.payload.sha256.hex(), opening.task_id
        ticket = await self._to.database(self._desk.begin_upload, opening.name, task_id, digest)
        if isinstance(ticket, Receipt):
            await self._to.files(self._to.payloads.forget_incoming, [task_id])
            duplicate = await self._to.database(self._desk.was_received, task_id, digest)
            await reply(_receipt(task_id, ticket, duplicate=duplicate))
            return
        _check_size(opening, ticket)
        await self._to.quota.open(opening.name)
        await self._check_pending(opening)
        with self._to.guard.transfer(caller):
            await self._alone(opening, ticket, requests, reply)

    async def _check_pending(self, opening: federation_pb2.UploadOpen) -> None:
        """Raise CrowdedError when the client has too many unfinished updates on the disk."""
        begun = self._to.payloads.incoming_tasks()
        most = self._to.guard.limits.pending_uploads
        if opening.task_id in begun or len(begun) < most:
            return
        mine = await self._to.database(self._standing.partial_uploads, opening.name, sorted(begun))
        if len(mine) >= most:
            raise CrowdedError(
                f"client {opening.name!r} has {len(mine)} unfinished updates here; expected up to "
                f"{most}. Finish one first",
                PENDING_SECONDS,
            )

    async def _alone(
        self,
        opening: federation_pb2.UploadOpen,
        ticket: Ticket,
        requests: Requests,
        reply: Reply,
    ) -> None:
        """Take the update in its turn; the only stream of its task."""
        me = asyncio.current_task()
        assert me is not None
        while (before := self._uploading.get(opening.task_id)) is not None:
            # A link that died silently: the client is back before we noticed. The newer wins.
            before.cancel()
            await asyncio.wait({before})

        async def tell(count: int) -> None:
            await reply(federation_pb2.UploadReply(queued=count))

        self._uploading[opening.task_id] = me
        try:
            async with self._to.turns.turn(opening.name, tell):
                with self._to.payloads.claimed(opening.task_id):
                    await self._receive(opening, ticket, requests, reply)
        finally:
            if self._uploading.get(opening.task_id) is me:
                del self._uploading[opening.task_id]

    async def _receive(
        self,
        opening: federation_pb2.UploadOpen,
        ticket: Ticket,
        requests: Requests,
        reply: Reply,
    ) -> None:
        digest, size = opening.payload.sha256.hex(), opening.payload.size
        begin = self._to.payloads.begin_incoming
        writer = FrameWriter(await self._to.files(begin, ticket.task_id, digest, size), size)
        received = 0
        intake = Intake(
            writer,
            requests,
            memory=self._to.memory,
            files=self._to.files,
            idle_seconds=self._to.guard.limits.idle_seconds,
        )

        async def written(count: int) -> None:
            nonlocal received
            received += count
            now = self._to.engine.clock.monotonic()
            self._to.engine.presence.touch(opening.name, opening.session, now)
            await reply(federation_pb2.UploadReply(acknowledged=writer.received))
            await self._to.quota.spend(opening.name, count)

        async def acknowledge() -> None:
            await reply(federation_pb2.UploadReply(acknowledged=writer.received))

        try:
            await acknowledge()
            if not await intake.run(written):
                return  # broken off; what came stays for the next try
            settling = self._settle(opening, ticket, writer, received)
            receipt = await _with_signs_of_life(settling, acknowledge)
            await self._to.files(self._to.payloads.drop_incoming, ticket.task_id)
        finally:
            writer.close()
        await reply(_receipt(ticket.task_id, receipt, duplicate=False))

    async def _settle(
        self,
        opening: federation_pb2.UploadOpen,
        ticket: Ticket,
        writer: FrameWriter,
        received: int,
    ) -> Receipt:
        """Hash, check and store a whole update, then put it on record.

        What came stays until the record names it: after a crash at any step no byte comes again.
        """
        whole = await self._to.files(writer.verify, opening.payload.sha256)
        try:
            found = await self._check(ticket, whole)
        except UpdateError:
            whole.unlink()
            raise
        digest = opening.payload.sha256.hex()
        counts = False
        try:
            with self._to.payloads.claimed(digest):
                await self._to.files(self._to.payloads.keep, whole, digest)
                receipt = await settled(
                    asyncio.ensure_future(self._accept(opening, received, found))
                )
            counts = receipt is Receipt.ACCEPTED
        finally:
            if not counts:
                self._to.payloads.suspect([digest])
        return receipt

    async def _check(self, ticket: Ticket, whole: Path) -> Findings:
        try:
            return await self._to.files(check_update, whole, ticket)
        except UpdateError as error:
            # The bytes are what the client meant to send, and they are wrong: no use in a retry.
            await self._to.database(self._desk.reject, ticket.task_id, str(error))
            raise

    async def _accept(
        self, opening: federation_pb2.UploadOpen, received: int, found: Findings
    ) -> Receipt:
        receipt = await self._record(
            Arrived(
                task_id=opening.task_id,
                digest=opening.payload.sha256.hex(),
                size=opening.payload.size,
                samples=opening.samples,
                metrics=checked_metrics(opening.metrics),
                seconds=checked_seconds(opening.train_seconds),
                restarted=opening.restarted,
                bytes_up=received,
                found=found,
            )
        )
        if isinstance(receipt, Exception):
            raise receipt
        return receipt

    def _accept_all(self, updates: Sequence[Arrived]) -> list[Receipt | Exception]:
        """Put updates on record together; where one cannot be, each by itself."""
        try:
            return [*self._desk.accept_all(updates)]
        except Exception as error:
            if len(updates) == 1:
                return [error]
            return [receipt for one in updates for receipt in self._accept_all([one])]


async def _with_signs_of_life(
    work: Coroutine[Any, Any, T], tell: Callable[[], Awaitable[None]]
) -> T:
    """Return what work comes to that may outlast the client's patience; `tell` it meanwhile.

    A client that heard nothing would break off, which ends the work, and bring it all about anew.
    """
    working = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({working}, timeout=SIGN_OF_LIFE_SECONDS))[0]:
            await tell()
    except BaseException:
        working.cancel()
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await settled(working)
        raise
    return working.result()


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
    message = federation_pb2.Receipt(task_id=task_id, status=_STATUS[receipt], duplicate=duplicate)
    return federation_pb2.UploadReply(receipt=message)
