"""Turns, frame memory, idle ends: how many transfers at once, in which order, for how long."""

from __future__ import annotations

import asyncio
import threading
import time
import zlib
from pathlib import Path

import grpc
import pytest
from transfer_rig import MIB, TransferRig, until

from fedclient.transfer.upload import upload
from fedserver.rounds.tasks import Findings, Ticket
from fedserver.service import transfers, uploads
from fedserver.service.limits import Limits
from fedserver.service.transfers import FrameMemory, Turns
from motley.errors import UpdateError
from motley.wire.stubs import common_pb2, federation_pb2


def opening(rig: TransferRig, name: str, task_id: str = "task-1") -> federation_pb2.UploadMessage:
    return federation_pb2.UploadMessage(
        open=federation_pb2.UploadOpen(
            name=name, session=f"session-{name}", task_id=task_id, payload=rig.ref, samples=1
        )
    )


def asked(rig: TransferRig, name: str) -> federation_pb2.DownloadRequest:
    return federation_pb2.DownloadRequest(
        name=name, session=f"session-{name}", task_id="task-1", sha256=rig.digest
    )


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_waiting_transfers_are_let_in_client_by_client() -> None:
    async def main() -> None:
        turns, order, told = Turns(1), [], {}
        gate = {name: asyncio.Event() for name in ("x", "a1", "a2", "a3", "b1", "c1")}

        async def one(name: str) -> None:
            async def tell(before: int) -> None:
                told[name] = before

            async with turns.turn(name[0], tell):
                order.append(name)
                await gate[name].wait()

        jobs = []
        for name in gate:
            jobs.append(asyncio.create_task(one(name)))
            await settle()
        assert order == ["x"]
        assert told == {"a1": 0, "a2": 1, "a3": 2, "b1": 1, "c1": 2}
        jobs[2].cancel()  # a2 goes away while it waits
        await settle()
        for name in ("x", "a1", "b1", "c1", "a3"):
            gate[name].set()
            await settle()
        assert order == ["x", "a1", "b1", "c1", "a3"]
        await asyncio.gather(*jobs, return_exceptions=True)
        assert turns._free == 1

    asyncio.run(main())


def test_frame_memory_is_given_in_the_order_of_asking_and_survives_cancellation() -> None:
    async def main() -> None:
        memory, got = FrameMemory(10), []

        async def want(name: str, count: int) -> None:
            await memory.take(count)
            got.append(name)

        await memory.take(8)
        jobs = [asyncio.create_task(want(n, c)) for n, c in (("big", 9), ("small", 1), ("mid", 5))]
        await settle()
        assert got == [], "a small one does not overtake for ever"
        jobs[0].cancel()
        await settle()
        assert got == ["small"]
        memory.give(8)
        await settle()
        assert got == ["small", "mid"]
        memory.give(6)
        assert memory.used == 0
        await asyncio.gather(*jobs, return_exceptions=True)

    asyncio.run(main())


def test_a_waiting_upload_and_download_hear_from_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "SIGN_OF_LIFE_SECONDS", 0.05)

    async def main() -> None:
        rig = TransferRig(tmp_path, 1, limits=Limits(transfers=1))
        async with rig.serving() as address, rig.client(address) as (peer, _):
            holder = peer.stub.Upload()
            await holder.write(opening(rig, "first"))
            assert (await holder.read()).WhichOneof("kind") == "acknowledged"
            waiting = peer.stub.Upload()
            await waiting.write(opening(rig, "second", "task-2"))
            for _ in range(3):
                reply = await waiting.read()
                assert (reply.WhichOneof("kind"), reply.queued) == ("queued", 0)
            getting = peer.stub.Download(asked(rig, "third"))
            for _ in range(3):
                assert (await getting.read()).data == b""
            waiting.cancel()  # frees its place at once
            holder.cancel()
            data = b""
            while (frame := await getting.read()) is not grpc.aio.EOF:
                data += frame.data
            assert data == rig.payload.read_bytes()
            assert rig.desk.counted == rig.size

    asyncio.run(main())


def test_an_upload_from_which_nothing_comes_is_ended_and_frees_its_slot(tmp_path: Path) -> None:
    async def main() -> None:
        rig = TransferRig(tmp_path, 1, limits=Limits(transfers=1, idle_seconds=0.3))
        async with rig.serving() as address, rig.client(address) as (peer, _):
            call = peer.stub.Upload()
            await call.write(opening(rig, "c0"))
            await call.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "[idle] nothing came for 0.3 s" in (caught.value.details() or "")
            frames = [frame async for frame in peer.stub.Download(asked(rig, "c1"))]
            assert sum(len(frame.data) for frame in frames) == rig.size

    asyncio.run(main())


def test_an_empty_frame_ends_an_upload_and_frees_its_slot(tmp_path: Path) -> None:
    async def main() -> None:
        rig = TransferRig(tmp_path, 1, limits=Limits(transfers=1))
        async with rig.serving() as address, rig.client(address) as (peer, _):
            call = peer.stub.Upload()
            await call.write(opening(rig, "c0"))
            await call.read()
            await call.write(piece(b"", 0, 0))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(call.read(), 10)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "[protocol] a frame of 0 bytes" in (caught.value.details() or "")
            await until(lambda: rig.service.turns.moving == 0, "its slot is free")

    asyncio.run(main())


def test_a_download_that_nobody_reads_is_ended_and_frees_its_slot(tmp_path: Path) -> None:
    async def main() -> None:
        limits = Limits(transfers=1, idle_seconds=0.5)
        rig = TransferRig(tmp_path, 24, limits=limits)
        async with rig.serving() as address, rig.client(address) as (peer, _):
            unread = peer.stub.Download(asked(rig, "c0"))
            await unread.read()
            await until(lambda: rig.service._downloads._to.turns._free == 0, "it has the slot")
            await until(lambda: rig.service._downloads._to.turns._free == 1, "its slot is free")
            assert rig.desk.counted < rig.size
            assert rig.service._downloads._to.memory.used == 0
            async with rig.client(address) as (other, _):
                size = 0
                async for frame in other.stub.Download(asked(rig, "c1")):
                    size += len(frame.data)
            assert size == rig.size

    asyncio.run(main())


def test_an_update_whose_check_outlasts_the_clients_patience_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "SIGN_OF_LIFE_SECONDS", 0.1)
    checks, real = [], uploads.check_update

    def slow(path: Path, ticket: Ticket) -> Findings:
        checks.append(path)
        time.sleep(2.5)
        return real(path, ticket)

    monkeypatch.setattr(uploads, "check_update", slow)

    async def main() -> None:
        rig = TransferRig(tmp_path, 1)
        async with (
            rig.serving() as address,
            rig.client(address, idle_seconds=1.0) as (peer, link),
        ):
            receipt = await asyncio.wait_for(upload(peer, rig.update(), link), 30)
            assert receipt.status == federation_pb2.UPDATE_STATUS_ACCEPTED
            assert (len(checks), len(rig.desk.accepted)) == (1, 1)

    asyncio.run(main())


def test_a_check_whose_client_went_away_ends_before_its_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "SIGN_OF_LIFE_SECONDS", 0.05)
    checking, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def slow(path: Path, ticket: Ticket) -> Findings:
        checking.set()
        go_on.wait(60)
        ended.set()
        raise UpdateError("told too late for anybody to hear")

    monkeypatch.setattr(uploads, "check_update", slow)

    async def main() -> None:
        rig = TransferRig(tmp_path, 1)
        data = rig.payload.read_bytes()
        async with rig.serving() as address, rig.client(address) as (peer, _):
            call = peer.stub.Upload()
            await call.write(opening(rig, "c0"))
            await call.read()
            for at in range(0, rig.size, MIB):
                await call.write(piece(data, at, MIB))
            await asyncio.to_thread(checking.wait, 60)
            call.cancel()
            await asyncio.sleep(0.3)
            assert len(rig.service._calls) == rig.service.turns.moving == 1
            go_on.set()
            await until(lambda: not rig.service._calls, "the call ends")
            assert ended.is_set()
            assert rig.service.turns.moving == 0
            assert [path.suffix for path in (tmp_path / "server/incoming").iterdir()] == [".part"]
            assert rig.desk.accepted == []

    asyncio.run(main())


def test_a_slow_transfer_that_moves_is_never_ended(tmp_path: Path) -> None:
    async def main() -> None:
        rig = TransferRig(tmp_path, 1, limits=Limits(idle_seconds=1.0))
        data = rig.payload.read_bytes()
        async with rig.serving() as address, rig.client(address) as (peer, _):
            call = peer.stub.Upload()
            await call.write(opening(rig, "c0"))
            await call.read()
            started, at = asyncio.get_running_loop().time(), 0
            while asyncio.get_running_loop().time() - started < 2.5:
                await asyncio.sleep(0.3)
                await call.write(piece(data, at, 100))
                at += 100
                assert (await call.read()).acknowledged == at
            call.cancel()

    asyncio.run(main())


def test_downloads_come_in_frames_of_the_size_that_was_asked_for(tmp_path: Path) -> None:
    async def main() -> None:
        rig = TransferRig(tmp_path, 3)
        async with rig.serving() as address, rig.client(address) as (peer, _):
            for wanted, given in ((0, MIB), (1, 16 * 1024), (200_000, 200_000), (10**8, MIB)):
                request = asked(rig, "c0")
                request.frame_bytes = wanted
                frame = await peer.stub.Download(request).read()
                assert len(frame.data) == given

    asyncio.run(main())


def piece(data: bytes, at: int, count: int) -> federation_pb2.UploadMessage:
    part = data[at : at + count]
    return federation_pb2.UploadMessage(
        frame=common_pb2.Frame(offset=at, data=part, crc32=zlib.crc32(part))
    )
