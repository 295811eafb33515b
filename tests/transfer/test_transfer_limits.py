"""Limits of one client over real sockets, and how a client waits."""

from __future__ import annotations

import asyncio
import zlib
from pathlib import Path

import grpc
import pytest
from transfer_rig import TransferRig

from fedclient.transfer.download import download
from fedclient.transfer.peer import LONGEST_PAUSE, Peer
from fedclient.transfer.speed import FULL_FRAME
from fedclient.transfer.upload import upload
from fedserver.rounds.standing import DAY
from fedserver.service.limits import Limits
from motley.wire.stubs import common_pb2, federation_pb2


class StillClock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 100 * DAY

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


def patient(peer: Peer, clock: StillClock) -> list[float]:
    """Let a client's pauses move the clock instead; returns their list."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock.now += seconds

    object.__setattr__(peer, "sleep", sleep)
    return waits


def test_a_client_that_calls_too_often_waits_as_told(tmp_path: Path) -> None:
    async def main() -> None:
        clock = StillClock()
        limits = Limits(calls_burst=1, calls_per_second=0.1)
        rig = TransferRig(tmp_path, 1, clock=clock, limits=limits)
        async with rig.serving() as address, rig.client(address) as (peer, link):
            waits = patient(peer, clock)
            await download(peer, rig.ref, "task-1", tmp_path / "got", link)
            await upload(peer, rig.update(), link)
            assert waits == [pytest.approx(10.0, abs=0.1)]
            assert link.frame("upload") == FULL_FRAME, "nothing is wrong with the link"

    asyncio.run(main())


def test_a_quota_is_waited_for_without_hammering_and_the_transfer_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        clock = StillClock()
        rig = TransferRig(tmp_path, 3, clock=clock, limits=Limits(bytes_per_day=1_500_000))
        async with rig.serving() as address, rig.client(address) as (peer, link):
            waits = patient(peer, clock)
            got = await download(peer, rig.ref, "task-1", tmp_path / "got", link)
            assert got.read_bytes() == rig.payload.read_bytes()
            assert max(waits) <= LONGEST_PAUSE + 1
            assert len(waits) <= 2 * 24 * 2, "two days, asked every half hour"
            assert clock.now >= 101 * DAY
            call = peer.stub.Download(request(rig))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in call:
                    pass
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "[quota] client 'c0' has used its 1500000 bytes" in caught.value.details()
            rest = dict(caught.value.trailing_metadata())["retry-after"]
            assert 0 < float(rest) <= DAY

    asyncio.run(main())


def test_a_client_that_sends_damage_again_and_again_is_put_aside(tmp_path: Path) -> None:
    async def main() -> None:
        clock = StillClock()
        rig = TransferRig(tmp_path, 1, clock=clock, limits=Limits(strikes=3))
        async with rig.serving() as address, rig.client(address) as (peer, _):
            codes = [await spoilt(rig, peer) for _ in range(5)]
            lost, aside = grpc.StatusCode.DATA_LOSS, grpc.StatusCode.RESOURCE_EXHAUSTED
            assert codes == [lost] * 4 + [aside], "the first is forgiven"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await peer.stub.Report(
                    federation_pb2.ReportRequest(name="c0", session="session-c0", task_id="x")
                )
            assert "[set_aside] client 'c0' is put aside" in caught.value.details()
            assert "damaged on its way" in caught.value.details()
            async with rig.client(address, "c1") as (other, link):
                await download(other, rig.ref, "task-1", tmp_path / "got", link)

    asyncio.run(main())


def test_unfinished_updates_of_a_client_are_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        rig = TransferRig(tmp_path, 1, limits=Limits(pending_uploads=2))
        rig.service._standing.partial_uploads = lambda client, ids: ids
        rig.service._uploads._standing = rig.service._standing
        data = rig.payload.read_bytes()
        async with rig.serving() as address, rig.client(address) as (peer, _):
            for number in range(2):
                call = peer.stub.Upload()
                await call.write(opening(rig, f"task-{number}"))
                await call.read()
                await call.write(frame(data, 0, 100))
                assert (await call.read()).acknowledged == 100
                call.cancel()
            call = peer.stub.Upload()
            await call.write(opening(rig, "task-2"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert "[crowded] client 'c0' has 2 unfinished updates" in caught.value.details()
            call = peer.stub.Upload()
            await call.write(opening(rig, "task-1"))
            assert (await call.read()).acknowledged == 100

    asyncio.run(main())


async def spoilt(rig: TransferRig, peer: Peer) -> grpc.StatusCode:
    """Send a damaged frame; return how the call ended."""
    call = peer.stub.Upload()
    bad = frame(rig.payload.read_bytes(), 0, 1000)
    bad.frame.crc32 ^= 1
    try:
        await call.write(opening(rig, "task-1"))
        await call.read()
        await call.write(bad)
        await call.read()
    except grpc.aio.AioRpcError as error:
        return error.code()
    return await call.code()


def request(rig: TransferRig) -> federation_pb2.DownloadRequest:
    return federation_pb2.DownloadRequest(
        name="c0", session="session-c0", task_id="task-1", sha256=rig.digest
    )


def opening(rig: TransferRig, task_id: str) -> federation_pb2.UploadMessage:
    return federation_pb2.UploadMessage(
        open=federation_pb2.UploadOpen(
            name="c0", session="session-c0", task_id=task_id, payload=rig.ref, samples=1
        )
    )


def frame(data: bytes, at: int, count: int) -> federation_pb2.UploadMessage:
    piece = data[at : at + count]
    return federation_pb2.UploadMessage(
        frame=common_pb2.Frame(offset=at, data=piece, crc32=zlib.crc32(piece))
    )
