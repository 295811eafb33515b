"""Clients of `idle.py` that do something: probes that check in, and workers that do rounds."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import zlib
from collections.abc import AsyncIterator

import grpc
from idle_clients import check_in

from motley.wire.stubs import common_pb2, federation_pb2, federation_pb2_grpc


class Bare(federation_pb2_grpc.FederationServicer):
    """Answers every check-in at once: what gRPC and this machine take without a server's work."""

    async def CheckIn(  # noqa: N802
        self, request: federation_pb2.CheckInRequest, context: object
    ) -> federation_pb2.CheckInReply:
        return federation_pb2.CheckInReply(working_on_is_closed=True)


async def serve_bare() -> None:
    """Serve `Bare`, print the port, and stay."""
    server = grpc.aio.server()
    federation_pb2_grpc.add_FederationServicer_to_server(Bare(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


INTERVAL = 0.1
"""Seconds from one check-in of a probe to the next; the server allows 20 a second."""
FRAME = 1 << 17


class Prober:
    """A client that says it has a task in hand, ten times a second: answered without waiting."""

    def __init__(self, channel: grpc.aio.Channel, name: str) -> None:
        self._stub = federation_pb2_grpc.FederationStub(channel)
        self._request = federation_pb2.CheckInRequest.FromString(check_in(name))
        self._request.working_on = "nothing"
        self._request.profile.labels.clear()
        self._seconds: list[float] = []
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            await self._stub.CheckIn(self._request, timeout=120)
            self._seconds.append(time.monotonic() - began)
            await asyncio.sleep(max(0.0, began + INTERVAL - time.monotonic()))

    def take(self) -> list[float]:
        """Return the seconds of the check-ins since the last time."""
        found, self._seconds = self._seconds, []
        return found

    def check(self) -> None:
        """Raise what ended it, when something did."""
        if self._task.done():
            self._task.result()

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
            await self._task


async def work(channel: grpc.aio.Channel, name: str) -> None:
    """Send back every broadcast as it came, until the finish task."""
    stub = federation_pb2_grpc.FederationStub(channel)
    request = federation_pb2.CheckInRequest.FromString(check_in(name))
    request.profile.labels.clear()
    request.profile.labels["role"] = "worker"
    while True:
        reply = await stub.CheckIn(request, timeout=120)
        if reply.WhichOneof("outcome") != "task":
            continue
        task = reply.task
        if task.kind == common_pb2.TASK_KIND_FINISH:
            result = federation_pb2.Result(seconds=0.1)
            await stub.Report(
                federation_pb2.ReportRequest(
                    name=name, session=request.session, task_id=task.task_id, result=result
                )
            )
            return
        data = await _download(stub, request, task)
        await _upload(stub, request, task, data)


async def _download(
    stub: federation_pb2_grpc.FederationStub,
    request: federation_pb2.CheckInRequest,
    task: common_pb2.Task,
) -> bytes:
    wanted = federation_pb2.DownloadRequest(
        name=request.name,
        session=request.session,
        task_id=task.task_id,
        sha256=task.payload.sha256,
    )
    return b"".join([frame.data async for frame in stub.Download(wanted)])


async def _upload(
    stub: federation_pb2_grpc.FederationStub,
    request: federation_pb2.CheckInRequest,
    task: common_pb2.Task,
    data: bytes,
) -> None:
    payload = common_pb2.PayloadRef(sha256=hashlib.sha256(data).digest(), size=len(data))
    opened = asyncio.Event()

    async def messages() -> AsyncIterator[federation_pb2.UploadMessage]:
        yield federation_pb2.UploadMessage(
            open=federation_pb2.UploadOpen(
                name=request.name,
                session=request.session,
                task_id=task.task_id,
                payload=payload,
                samples=10,
            )
        )
        await opened.wait()
        for offset in range(0, len(data), FRAME):
            part = data[offset : offset + FRAME]
            frame = common_pb2.Frame(offset=offset, data=part, crc32=zlib.crc32(part))
            yield federation_pb2.UploadMessage(frame=frame)

    async for reply in stub.Upload(messages()):
        opened.set()
        if reply.WhichOneof("kind") == "receipt":
            return
    raise RuntimeError(f"the update of {request.name} got no receipt")


if __name__ == "__main__":
    asyncio.run(serve_bare())
