"""A federation server for tests: real sockets, scripted tasks, scripted faults."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import grpc

from motley.wire.stubs import common_pb2 as pb
from motley.wire.stubs import federation_pb2 as fed
from motley.wire.stubs.federation_pb2_grpc import (
    FederationServicer,
    add_FederationServicer_to_server,
)

FRAME = 4096
_started: list[FakeServer] = []


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine; servers that it started are stopped however it ends."""

    async def guarded() -> None:
        try:
            await body()
        finally:
            while _started:
                await _started.pop().stop()

    asyncio.run(guarded())


@dataclass
class FakeServer(FederationServicer):
    """Keeps its state over `stop` and `start`, as a restarted server would."""

    tasks: deque[pb.Task] = field(default_factory=deque)
    payloads: dict[bytes, bytes] = field(default_factory=dict)
    check_ins: list[fed.CheckInRequest] = field(default_factory=list)
    refuse: tuple[grpc.StatusCode, str] | None = None
    break_after: deque[int] = field(default_factory=deque)
    """Bytes after which the next streams break, in both directions; empty: none breaks."""
    damage_frames: int = 0
    damage_every: int = 0
    """Of so many frames of a download one is damaged; 0: none."""
    out_of_range: int = 0
    """So many downloads are refused for their offset."""
    final: grpc.StatusCode | None = None
    """Status with which every upload is refused, in the words `refusal`."""
    refusal: str = "scripted refusal"
    report_status: grpc.StatusCode | None = None
    """Status with which every report is refused, after it was noted."""
    down_offsets: list[int] = field(default_factory=list)
    up_offsets: list[int] = field(default_factory=list)
    partial: dict[str, bytearray] = field(default_factory=dict)
    opens: dict[str, fed.UploadOpen] = field(default_factory=dict)
    updates: dict[str, bytes] = field(default_factory=dict)
    reports: list[fed.ReportRequest] = field(default_factory=list)
    is_closed: Callable[[str], bool] = lambda task_id: False
    hold: float = 0.02
    port: int = 0

    def __post_init__(self) -> None:
        self._server: grpc.aio.Server | None = None
        self._changed = asyncio.Event()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> FakeServer:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_FederationServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        _started.append(self)
        return self

    async def stop(self) -> None:
        if self._server:
            await self._server.stop(0)
        self._server = None

    async def until(self, condition: Callable[[], Any], seconds: float = 30.0) -> None:
        """Wait until a condition over this server's state holds."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, "the condition never came true"
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.1)

    def offer(self, payload: bytes = b"", **fields: Any) -> pb.Task:
        """Queue a task; returns it."""
        digest = hashlib.sha256(payload).digest() if payload else b""
        if payload:
            self.payloads[digest] = payload
        plan = fields.pop("plan", pb.Plan(variant="linear", up_bits=32, down_bits=32))
        task = pb.Task(
            **{
                "task_id": f"task-{len(self.check_ins)}-{len(self.tasks)}",
                "kind": pb.TASK_KIND_TRAIN,
                "run_id": "run-1",
                "run_name": "demo",
                "round": 1,
                "rounds": 3,
                "algorithm": "fedavg",
                "workload": "linear",
                "plan": plan,
                "run_seed": 7,
                "global_variant": "linear",
                "threads": 1,
                "payload": pb.PayloadRef(sha256=digest, size=len(payload)),
                **fields,
            }
        )
        self.tasks.append(task)
        return task

    async def CheckIn(  # noqa: N802
        self, request: fed.CheckInRequest, context: Any
    ) -> fed.CheckInReply:
        self.check_ins.append(request)
        self._changed.set()
        if self.refuse:
            await context.abort(*self.refuse)
        if request.working_on:
            return fed.CheckInReply(working_on_is_closed=self.is_closed(request.working_on))
        if self.tasks and not request.leaving:
            return fed.CheckInReply(task=self.tasks.popleft())
        return fed.CheckInReply(retry_after_seconds=self.hold)

    async def Download(  # noqa: N802
        self, request: fed.DownloadRequest, context: Any
    ) -> AsyncIterator[pb.Frame]:
        if request.sha256 not in self.payloads:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such payload")
        self.down_offsets.append(request.offset)
        if self.out_of_range:
            self.out_of_range -= 1
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "[offset] beyond the payload")
        data, at, sent = self.payloads[request.sha256], request.offset, 0
        limit = self.break_after.popleft() if self.break_after else None
        while at < len(data):
            piece = data[at : at + FRAME]
            crc = zlib.crc32(piece)
            if self.damage_frames:
                self.damage_frames -= 1
                crc ^= 1
            sent += 1
            if self.damage_every and sent % self.damage_every == 0:
                crc ^= 1
            yield pb.Frame(offset=at, data=piece, crc32=crc)
            at += len(piece)
            if limit is not None and at - request.offset >= limit:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted break")

    async def Upload(  # noqa: N802
        self, requests: Any, context: Any
    ) -> AsyncIterator[fed.UploadReply]:
        opening = (await requests.__anext__()).open
        self.opens[opening.task_id] = opening
        if self.final:
            await context.abort(self.final, self.refusal)
        if opening.task_id in self.updates:
            yield self._receipt(opening, duplicate=True)
            return
        partial = self.partial.setdefault(opening.task_id, bytearray())
        self.up_offsets.append(len(partial))
        yield fed.UploadReply(acknowledged=len(partial))
        limit = self.break_after.popleft() if self.break_after else None
        taken = 0
        async for message in requests:
            frame = message.frame
            assert frame.offset == len(partial)
            assert frame.crc32 == zlib.crc32(frame.data)
            data = frame.data if limit is None else frame.data[: limit - taken]
            partial += data
            taken += len(data)
            yield fed.UploadReply(acknowledged=len(partial))
            if limit is not None and taken >= limit:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted break")
        assert hashlib.sha256(partial).digest() == opening.payload.sha256
        self.updates[opening.task_id] = bytes(partial)
        self._changed.set()
        yield self._receipt(opening, duplicate=False)

    async def Report(  # noqa: N802
        self, request: fed.ReportRequest, context: Any
    ) -> fed.ReportReply:
        self.reports.append(request)
        self._changed.set()
        if self.report_status:
            await context.abort(self.report_status, "scripted refusal")
        return fed.ReportReply()

    def _receipt(self, opening: fed.UploadOpen, duplicate: bool) -> fed.UploadReply:
        return fed.UploadReply(
            receipt=fed.Receipt(
                task_id=opening.task_id,
                status=fed.UPDATE_STATUS_ACCEPTED,
                duplicate=duplicate,
            )
        )
