"""The client-facing service over real sockets, with a raw stub: good, odd and hostile calls."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from bench import moved, runfile
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedserver.client import ControlError, Operator
from fedserver.listeners import check_address
from fedserver.rounds.engine import Engine
from fedserver.rounds.presence import Arrival
from fedserver.serve import serve
from motley.wire import PayloadReader, TensorRow, TensorTable, encode_dense, write_payload
from motley.wire.stubs import common_pb2, federation_pb2, federation_pb2_grpc
from motley.workloads.digits import Digits

pb = federation_pb2


class Rig:
    """A server in this process, a raw stub, and an operator."""

    def __init__(self, root: Path, channel: grpc.aio.Channel) -> None:
        self.root, self.channel = root, channel
        self.stub = federation_pb2_grpc.FederationStub(channel)

    async def operator(self, function: str, *arguments: object) -> object:
        def call() -> object:
            with Operator(self.root) as operator:
                return getattr(operator, function)(*arguments)

        return await asyncio.to_thread(call)

    async def check_in(self, name: str = "c0", timeout: float = 60, **fields: object) -> object:
        request = pb.CheckInRequest(
            name=name,
            session=str(fields.pop("session", f"session-{name}")),
            capabilities=common_pb2.Capabilities(
                protocol=int(fields.pop("protocol", 1)),
                wire=1,
                algorithms={"fedavg": 1, "fedmpq": 1},
                workloads=fields.pop("workloads", {"digits": Digits.version}),
                encodings=["dense", "uniform", "codebook"],
            ),
            profile=common_pb2.DeviceProfile(cores=1, threads=1, tier=str(fields.pop("tier", ""))),
            **fields,
        )
        return await self.stub.CheckIn(request, timeout=timeout)

    async def task(self, name: str = "c0") -> common_pb2.Task:
        while True:
            reply = await self.check_in(name)
            if reply.WhichOneof("outcome") == "task":
                return reply.task

    async def download(self, task: common_pb2.Task, name: str = "c0", offset: int = 0) -> bytes:
        request = pb.DownloadRequest(
            name=name,
            session=f"session-{name}",
            task_id=task.task_id,
            sha256=task.payload.sha256,
            offset=offset,
        )
        data = b""
        async for frame in self.stub.Download(request, timeout=20):
            assert frame.offset == offset + len(data)
            assert frame.crc32 == zlib.crc32(frame.data)
            data += frame.data
        return data

    def update(self, task: common_pb2.Task, broadcast: bytes, by: float = 0.1) -> bytes:
        """Return an update's payload bytes: the broadcast with `by` added."""
        from motley.models.units import unit_table

        table = unit_table(Digits().variants()["cnn1"].build()).tensor_table
        with PayloadReader(broadcast, table) as reader:
            values = moved({n: reader[n].decode() for n in reader.names}, by)
        return payload(values, table)

    async def upload(
        self, task: common_pb2.Task, data: bytes, name: str = "c0", **changes: object
    ) -> pb.Receipt:
        """Upload as a client does, in frames of 10 kB; `changes` spoil it."""
        import hashlib

        size = int(changes.get("size", len(data)))
        digest = changes.get("sha256", hashlib.sha256(data).digest())
        chunk = 10_000

        async def messages() -> AsyncIterator[pb.UploadMessage]:
            yield pb.UploadMessage(
                open=pb.UploadOpen(
                    name=name,
                    session=f"session-{name}",
                    task_id=task.task_id,
                    payload=common_pb2.PayloadRef(sha256=digest, size=size),
                    samples=10,
                    metrics={"loss": 1.0},
                )
            )
            offset = await offsets.get()
            while offset < len(data):
                piece = data[offset : offset + chunk]
                crc = zlib.crc32(piece) ^ int(changes.get("crc_error", 0))
                shift = int(changes.get("shift", 0))
                frame = common_pb2.Frame(offset=offset + shift, data=piece, crc32=crc)
                yield pb.UploadMessage(frame=frame)
                offset += len(piece)
                if changes.keys() & {"crc_error", "shift"}:
                    # A write after the refusal would hide its status behind one of gRPC's own.
                    await asyncio.sleep(30)
                if offset >= changes.get("break_at", np.inf):
                    return
                if offset >= changes.get("silent_at", np.inf):
                    await asyncio.sleep(60)

        offsets: asyncio.Queue[int] = asyncio.Queue()
        self.acknowledged: list[int] = []
        async for reply in self.stub.Upload(messages(), timeout=20):
            if reply.WhichOneof("kind") == "receipt":
                return reply.receipt
            self.acknowledged.append(reply.acknowledged)
            offsets.put_nowait(reply.acknowledged)
        raise ConnectionError("the stream ended without a receipt")


def payload(values: dict[str, np.ndarray], table: TensorTable) -> bytes:
    import io

    stream = io.BytesIO()
    write_payload(stream, [(n, encode_dense(v)) for n, v in values.items()], table)
    return stream.getvalue()


@contextlib.asynccontextmanager
async def running(root: Path, **options: int) -> AsyncIterator[Rig]:
    ready = root.parent / "ready"
    server = asyncio.create_task(serve(root, "127.0.0.1:0", {}, on_ready=ready, **options))
    while not ready.exists() or not ready.read_text():
        assert not server.done(), server.exception()
        await asyncio.sleep(0.01)
    async with grpc.aio.insecure_channel(ready.read_text()) as channel:
        yield Rig(root, channel)
    server.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await server
    ready.unlink()


@contextlib.contextmanager
def refused(status: grpc.StatusCode, text: str) -> Iterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is status, caught.value.details()
    assert text in (caught.value.details() or "")


def scenario(body: object, tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path / "data") as rig:
            await body(rig)

    asyncio.run(main())


async def one_client_run(rig: Rig) -> tuple[common_pb2.Task, bytes]:
    await rig.operator("submit", runfile(clients=1, rounds=1), "test")
    task = await rig.task()
    return task, await rig.download(task)


def test_a_round_over_the_wire(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        task, broadcast = await one_client_run(rig)
        assert len(broadcast) == task.payload.size
        receipt = await rig.upload(task, rig.update(task, broadcast))
        assert receipt.status == pb.UPDATE_STATUS_ACCEPTED
        finish = await rig.task()
        assert finish.kind == common_pb2.TASK_KIND_FINISH
        assert finish.base_version == task.task_id
        await rig.stub.Report(
            pb.ReportRequest(
                name="c0",
                session="session-c0",
                task_id=finish.task_id,
                result=pb.Result(metrics={"accuracy": 0.5}),
            )
        )
        record = (await rig.operator("runs"))[0]
        assert (record["status"], record["finish_done"]) == ("finished", 1)
        assert record["bytes_down"] == 2 * len(broadcast) - len(broadcast)

    scenario(body, tmp_path)


def test_downloads_and_uploads_resume(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        task, broadcast = await one_client_run(rig)
        assert await rig.download(task, offset=777) == broadcast[777:]
        update = rig.update(task, broadcast)
        with pytest.raises(ConnectionError):
            await rig.upload(task, update, break_at=30_000)
        receipt = await rig.upload(task, update)
        assert rig.acknowledged[0] == 30_000
        assert receipt.status == pb.UPDATE_STATUS_ACCEPTED
        again = await rig.upload(task, update)
        assert again.duplicate

    scenario(body, tmp_path)


def test_a_newer_upload_stream_takes_over_from_a_silent_one(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        task, broadcast = await one_client_run(rig)
        update = rig.update(task, broadcast)
        silent = asyncio.create_task(rig.upload(task, update, silent_at=20_000))
        while not rig_partial(rig, task) >= 20_000:
            await asyncio.sleep(0.01)
        receipt = await rig.upload(task, update)
        assert receipt.status == pb.UPDATE_STATUS_ACCEPTED
        assert rig.acknowledged[0] == 20_000
        silent.cancel()
        await asyncio.gather(silent, return_exceptions=True)

    scenario(body, tmp_path)


def rig_partial(rig: Rig, task: common_pb2.Task) -> int:
    found = (rig.root / "incoming").glob(f"{task.task_id}+*.part")
    return max((partial.stat().st_size for partial in found), default=0)


def test_spoiled_uploads_change_nothing_and_a_good_one_still_counts(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        task, broadcast = await one_client_run(rig)
        good = rig.update(task, broadcast)
        with refused(grpc.StatusCode.DATA_LOSS, "damaged"):
            await rig.upload(task, good, crc_error=1)
        with refused(grpc.StatusCode.DATA_LOSS, "offset"):
            await rig.upload(task, good, shift=5)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "expected up to"):
            await rig.upload(task, good, size=10**12)
        with refused(grpc.StatusCode.DATA_LOSS, "SHA-256"):
            await rig.upload(task, good, sha256=b"x" * 32)
        with refused(grpc.StatusCode.NOT_FOUND, "no task"):
            await rig.upload(common_pb2.Task(task_id="nothing"), good)
        with refused(grpc.StatusCode.NOT_FOUND, "no task"):
            await rig.upload(task, good, name="c1")
        receipt = await rig.upload(task, good)
        assert receipt.status == pb.UPDATE_STATUS_ACCEPTED

    scenario(body, tmp_path)


def test_an_update_of_another_model_is_refused(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        task, _ = await one_client_run(rig)
        table = TensorTable([TensorRow("conv1.weight", (6, 1, 3, 3), "float32")])
        wrong = payload({"conv1.weight": np.zeros((6, 1, 3, 3), np.float32)}, table)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "table"):
            await rig.upload(task, wrong)
        assert (await rig.operator("show", "test"))["round"] == 0

    scenario(body, tmp_path)


def test_the_standard_health_service_answers(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        health = health_pb2_grpc.HealthStub(rig.channel)
        reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING

    scenario(body, tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: b"\0" * len(data), "not valid"),
        (lambda data: data[:-64], "not valid"),
        (lambda data: data[:40] + b"\xff" * 16 + data[56:], "not valid"),
    ],
)
def test_bytes_that_are_no_update_fail_the_task_with_a_reason(
    tmp_path: Path, spoil: object, message: str
) -> None:
    async def body(rig: Rig) -> None:
        task, broadcast = await one_client_run(rig)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, message):
            await rig.upload(task, spoil(rig.update(task, broadcast)))
        while not (record := await rig.operator("show", "test"))["history"]:
            await asyncio.sleep(0.02)
        assert message in record["history"][0]["clients"]["c0"]["reason"]
        assert record["round"] == 0
        assert not list((rig.root / "incoming").iterdir())

    scenario(body, tmp_path)


def test_odd_check_ins_are_refused(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "expected 1 to 64 letters"):
            await rig.check_in("../../etc")
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "protocol 99"):
            await rig.check_in(protocol=99)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "tier: expected a name of up to 64"):
            await rig.check_in(tier="t" * 65)
        waiting = asyncio.create_task(rig.check_in("c0"))
        await asyncio.sleep(0.3)
        with refused(grpc.StatusCode.ALREADY_EXISTS, "another --name"):
            await rig.check_in("c0", session="another")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        # The waiting connection broke: the name is free at once.
        await until_free(rig, "c0")

    scenario(body, tmp_path)


async def until_free(rig: Rig, name: str) -> None:
    """Return once another device may take a client's name."""
    for _ in range(100):
        try:
            await rig.check_in(name, session="another", timeout=0.2)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return
        await asyncio.sleep(0.02)
    raise AssertionError("the name was never freed")


def test_a_check_in_that_breaks_off_before_it_is_on_record_frees_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, enrol = threading.Event(), Engine.enrol

    def slow(engine: Engine, *arrivals: Arrival) -> None:
        free.wait(20)
        enrol(engine, *arrivals)

    monkeypatch.setattr(Engine, "enrol", slow)

    async def body(rig: Rig) -> None:
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED, ""):
            await rig.check_in("c0", timeout=0.3)
        free.set()
        await until_free(rig, "c0")

    scenario(body, tmp_path)


def test_an_unmapped_workload_is_told_to_operator_and_client(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        await rig.operator("submit", runfile(clients=1), "test")
        reply = await rig.check_in(workloads={"other": 1})
        assert "--workload digits=module:object" in reply.notices[0]
        for _ in range(100):
            record = await rig.operator("show", "test")
            if "c0" in record["reason"]:
                break
            await asyncio.sleep(0.02)
        assert "--workload digits=module:object" in record["reason"]

    scenario(body, tmp_path)


def test_operators_get_clear_errors(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        with pytest.raises(ControlError, match="unknown_run"):
            await rig.operator("show", "nothing")
        with pytest.raises(ControlError, match=r"run\.round: no such field"):
            await rig.operator("submit", runfile().replace("rounds =", "round ="), "x.toml")
        assert await rig.operator("runs") == []

    scenario(body, tmp_path)
    with pytest.raises(ControlError, match="no server answers"), Operator(tmp_path / "d") as op:
        op.runs()


def test_plain_text_stays_on_loopback() -> None:
    from fedserver.errors import AddressError

    for address in ("127.0.0.1:1", "[::1]:1", "localhost:1"):
        check_address(address, anywhere=False)
    with pytest.raises(AddressError, match="can be reached by others"):
        check_address("0.0.0.0:1", anywhere=False)
    check_address("0.0.0.0:1", anywhere=True)
    with pytest.raises(AddressError, match="expected HOST:PORT"):
        check_address("9400", anywhere=True)
