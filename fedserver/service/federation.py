"""The client-facing service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from fedserver.errors import IdleError, ProtocolError
from fedserver.rounds.driver import Driver
from fedserver.rounds.engine import Engine
from fedserver.rounds.presence import Arrival
from fedserver.rounds.standing import Standing
from fedserver.rounds.tasks import TaskDesk
from fedserver.service.callers import Callers
from fedserver.service.downloads import Downloads, writing
from fedserver.service.exchange import Exchange
from fedserver.service.gathered import Gathered
from fedserver.service.intake import Requests
from fedserver.service.limits import LONGEST_SET_ASIDE, MIB, Caller, Guard, Limits
from fedserver.service.quota import Quota
from fedserver.service.requests import (
    LONGEST_MESSAGE,
    LONGEST_NAME,
    arrival_of,
    checked_metrics,
    checked_seconds,
)
from fedserver.service.status import RefusedError, abort, refusals
from fedserver.service.transfers import FileThreads, FrameMemory, Turns
from fedserver.service.uploads import Uploads
from fedserver.storage.database import DatabaseThread
from fedserver.storage.payloads import PayloadStore
from motley import __version__
from motley.messages import task_to_proto
from motley.task import TaskSpec
from motley.wire import Frame
from motley.wire.stubs import federation_pb2, federation_pb2_grpc

if TYPE_CHECKING:
    from fedserver.service.status import Context

POLL_SECONDS = 40.0
"""How long a check-in is held; clients expect an answer within 45 s."""
NOTICE_SECONDS = 5.0
"""A client that a run cannot take asks again after so long: its owner may mend it."""
ENDING_SECONDS = 10.0
"""A server that stops waits so long for calls that were cut off amid work on files."""


class FederationService(federation_pb2_grpc.FederationServicer):
    """Check-ins, transfers and reports of clients."""

    def __init__(
        self,
        engine: Engine,
        driver: Driver,
        database: DatabaseThread,
        payloads: PayloadStore,
        callers: Callers,
        *,
        limits: Limits | None = None,
        names_are_proven: bool = False,
    ) -> None:
        """Make the service; `names_are_proven` says that certificates carry clients' names."""
        limits = limits or Limits()
        self._callers = callers
        self._engine, self._driver = engine, driver
        self._database, self._desk = database, TaskDesk(engine)
        self._standing, self._polls = Standing(engine), 0
        self._calls: set[asyncio.Task[object]] = set()
        self._enrol = Gathered[Arrival, None](database, self._enrol_all)
        self._left = Gathered[tuple[str, float], None](database, self._note_left)
        self._look = Gathered[str, tuple[TaskSpec | None, list[str]]](database, self._look_for)
        self._guard = Guard(
            limits, engine.clock, names_are_proven=names_are_proven, put_aside=self._put_aside
        )
        # Hashing, checking and writing of updates never run on the event loop.
        self._files = FileThreads()
        self.turns = Turns(limits.transfers)
        self._quota = Quota(limits.bytes_per_day, self._standing, database, engine.clock)
        exchange = Exchange(
            engine=engine,
            database=database,
            payloads=payloads,
            guard=self._guard,
            quota=self._quota,
            turns=self.turns,
            memory=FrameMemory(limits.frame_memory_mib * MIB),
            files=self._files,
        )
        self._downloads, self._uploads = Downloads(exchange), Uploads(exchange)

    async def close(self) -> None:
        """Let calls that were cut off end, then the file threads.

        What transfers counted is recorded, and when clients spoke last.
        """
        if self._calls:
            # They still close files and count bytes, on threads that end here.
            await asyncio.wait(self._calls, timeout=ENDING_SECONDS)
        try:
            await self._quota.save_all()
            await self._database(self._standing.note_seen, self._engine.presence.seen())
        finally:
            self._files.close()

    # --- check-in ----------------------------------------------------------------------------

    async def CheckIn(  # noqa: N802
        self, request: federation_pb2.CheckInRequest, context: Context
    ) -> federation_pb2.CheckInReply:
        """Answer with a task as soon as there is one."""
        try:
            async with self._call("CheckIn", request.name, request.session, context) as caller:
                return await self._check_in(request, caller)
        except RefusedError as refusal:
            await abort(context, refusal)

    async def _check_in(
        self, request: federation_pb2.CheckInRequest, caller: Caller
    ) -> federation_pb2.CheckInReply:
        presence, clock = self._engine.presence, self._engine.clock
        if request.leaving:
            if presence.leave(request.name, request.session):
                await self._left((request.name, clock.monotonic()))
            return federation_pb2.CheckInReply(retry_after_seconds=0.0, server_software=__version__)
        self._polls += 1
        arrival = arrival_of(request, clock.monotonic(), self._polls)
        if presence.arrive(arrival):
            try:
                await self._enrol(arrival)
            except Exception:
                presence.leave(arrival.name, arrival.session)  # not here without a record
                raise
            except asyncio.CancelledError:
                presence.release(arrival)
                raise
        reply = federation_pb2.CheckInReply(retry_after_seconds=0.0, server_software=__version__)
        if request.working_on:
            reply.working_on_is_closed = not await self._database(
                self._desk.is_open, request.name, request.working_on
            )
            return reply
        try:
            await self._wait_for_task(request, reply, caller)
        except asyncio.CancelledError:
            # The connection broke while it waited: the name is free at once.
            presence.release(arrival)
            raise
        return reply

    async def _wait_for_task(
        self,
        request: federation_pb2.CheckInRequest,
        reply: federation_pb2.CheckInReply,
        caller: Caller,
    ) -> None:
        """Hold a check-in until there is a task, a notice, or nothing for `POLL_SECONDS`."""
        clock = self._engine.clock
        end = clock.monotonic() + POLL_SECONDS
        # The first look is unconditional, so that no mistake in memory can starve a client.
        look = True
        while True:
            if look:
                self._driver.looking(request.name)
                task, notices = await self._look(request.name)
                if task is not None:
                    self._driver.found(request.name)
                    reply.task.CopyFrom(task_to_proto(task))
                    return
                if notices:
                    reply.notices.extend(notices)
                    reply.retry_after_seconds = NOTICE_SECONDS
                    return
            left = end - clock.monotonic()
            if left <= 0:
                return
            await self._driver.wait_for_work(request.name, left)
            self._guard.check(caller)  # it may have been put aside for another call
            self._alive(request.name, request.session)
            look = self._driver.may_have_work(request.name)

    def _enrol_all(self, arrivals: Sequence[Arrival]) -> list[None]:
        self._engine.enrol(*arrivals)
        return [None] * len(arrivals)

    def _note_left(self, seen: Sequence[tuple[str, float]]) -> list[None]:
        self._standing.note_seen(dict(seen))
        return [None] * len(seen)

    def _look_for(self, names: Sequence[str]) -> list[tuple[TaskSpec | None, list[str]]]:
        """Return each client's task, and what its owner is to be told where there is none."""
        found = self._desk.next_tasks(names)
        notices = self._engine.notices(names) if None in found else [[] for _ in names]
        return list(zip(found, notices, strict=True))

    # --- transfers ---------------------------------------------------------------------------

    async def Download(  # noqa: N802
        self, request: federation_pb2.DownloadRequest, context: Context
    ) -> None:
        """Stream a payload that was offered to this client, from an offset to its end."""
        try:
            async with self._call("Download", request.name, request.session, context) as caller:
                await self._downloads.send(request, caller, context)
        except RefusedError as refusal:
            await abort(context, refusal)

    async def Upload(self, requests: Requests, context: Context) -> None:  # noqa: N802
        """Take an update from the acknowledged offset on; the last reply is the receipt."""

        try:
            with refusals("Upload", str(context.peer())):
                opening = await self._opening(requests)
            async with self._call("Upload", opening.name, opening.session, context) as caller:
                with writing(context, self._guard.limits.idle_seconds) as reply:
                    await self._uploads.take(opening, caller, requests, reply)
        except RefusedError as refusal:
            await abort(context, refusal)

    async def _opening(self, requests: Requests) -> federation_pb2.UploadOpen:
        seconds = self._guard.limits.idle_seconds
        try:
            first = await asyncio.wait_for(anext(requests, None), seconds)
        except asyncio.TimeoutError:
            raise IdleError(f"an upload sent no opening message for {seconds:g} s") from None
        if first is None or isinstance(first, Frame) or first.WhichOneof("kind") != "open":
            raise ProtocolError("an upload begins with its opening message")
        return first.open

    @contextlib.asynccontextmanager
    async def _call(
        self, method: str, name: str, session: str, context: Context
    ) -> AsyncIterator[Caller]:
        """Hold one call: let in, counted, and its errors turned into refusals."""
        call = asyncio.current_task()
        assert call is not None
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        caller = self._guard.caller(name, session)
        with refusals(method, name[:LONGEST_NAME]), self._callers.admitted(context, name):
            async with self._guard.call(caller):
                yield caller

    def _alive(self, name: str, session: str) -> None:
        self._engine.presence.touch(name, session, self._engine.clock.monotonic())

    async def restore(self) -> None:
        """Take up what the record says of clients that are put aside; before calls come in."""
        for found in await self._database(self._standing.put_asides, LONGEST_SET_ASIDE):
            caller = self._guard.caller(found.client, found.session)
            self._guard.restore(caller, found.seconds, found.reason)

    async def _put_aside(self, caller: Caller, seconds: float, reason: str) -> None:
        """Record that a client is put aside; it is away from now on."""
        arrival = self._engine.presence.get(caller.name)
        if arrival is not None and caller.session in ("", arrival.session):
            self._engine.presence.leave(caller.name, arrival.session)
        await self._database(self._standing.put_aside, caller.name, caller.session, seconds, reason)

    # --- report ------------------------------------------------------------------------------

    async def Report(  # noqa: N802
        self, request: federation_pb2.ReportRequest, context: Context
    ) -> federation_pb2.ReportReply:
        """End a task that sends no payload."""
        try:
            async with self._call("Report", request.name, request.session, context):
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

    # --- certificates ------------------------------------------------------------------------

    async def Renew(  # noqa: N802
        self, request: federation_pb2.RenewRequest, context: Context
    ) -> federation_pb2.RenewReply:
        """Sign a new certificate for the client that asks."""
        try:
            with refusals("Renew", str(context.peer())):
                name, registry = self._callers.name(context), self._callers.registry
            assert registry is not None
            async with self._call("Renew", name, "", context):
                issued = await self._database(registry.renew, name, request.signing_request)
                return federation_pb2.RenewReply(
                    certificate=issued.certificate, authority=registry.authority.der
                )
        except RefusedError as refusal:
            await abort(context, refusal)
