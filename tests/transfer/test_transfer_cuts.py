"""Transfers whose connections are cut, counted at a proxy; and how frames follow the link."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from pathlib import Path

import grpc
import pytest
from cutting_proxy import CuttingProxy
from structlog.testing import capture_logs
from transfer_rig import MIB, TransferRig, until

from fedclient.transfer.download import download
from fedclient.transfer.speed import CUT_FRAME, FULL_FRAME, LEAST_FRAME, LinkRecord
from fedclient.transfer.upload import upload
from motley.wire import file_sha256, partial_path
from motley.wire.stubs import common_pb2, federation_pb2

# What lies in buffers when a connection is cut counts here, and grows on a busy machine.
pytestmark = pytest.mark.alone

CALLS = 64 * 1024
"""What HTTP/2, gRPC and the proxy's last read may add to the bytes of a connection."""


def test_frames_shrink_after_a_cut_and_double_after_every_4_mib(tmp_path: Path) -> None:
    link = LinkRecord(tmp_path / "link.json")
    assert link.frame("upload") == FULL_FRAME
    assert link.is_good("upload")
    link.cut("upload")
    assert link.frame("upload") == CUT_FRAME == 128 * 1024
    assert link.frame("download") == FULL_FRAME
    sizes = []
    for _ in range(13 * 4):
        link.passed("upload", MIB // 4)
        sizes.append(link.frame("upload"))
    assert [sizes.index(size) + 1 for size in sorted(set(sizes))] == [1, 16, 32, 48]
    assert LinkRecord(tmp_path / "link.json").frame("upload") == FULL_FRAME


def test_a_cut_starts_the_4_mib_again_and_is_kept_over_a_restart(tmp_path: Path) -> None:
    link = LinkRecord(tmp_path / "link.json")
    link.cut("download")
    link.passed("download", 4 * MIB - 1)
    link.cut("download")
    link.passed("download", 4 * MIB - 1)
    assert link.frame("download") == CUT_FRAME
    assert LinkRecord(tmp_path / "link.json").frame("download") == CUT_FRAME


def test_frames_fit_a_slow_link_and_shrink_further_when_one_stands_still(tmp_path: Path) -> None:
    link = LinkRecord(tmp_path / "link.json")
    link.uploaded(64 * 1024, 8.0)
    assert link.frame("upload") == 80 * 1024, "ten seconds' worth"
    for size in (128, 64, 32, 16, 16):
        link.cut("download", stood_still=True)
        assert link.frame("download") == size * 1024
    assert link.frame("download") == LEAST_FRAME


def test_an_upload_cut_again_and_again_repeats_a_frame_each_time(tmp_path: Path) -> None:
    async def main() -> None:
        rig, cuts = TransferRig(tmp_path, 20), 5
        async with rig.serving() as address:
            limits = deque([rig.size // (cuts + 1)] * cuts)
            async with (
                CuttingProxy(address, cuts_up=limits) as proxy,
                rig.client(proxy.address) as (peer, link),
            ):
                link.cut("upload")  # a link that was bad before
                with capture_logs() as logs:
                    receipt = await upload(peer, rig.update(), link)
            assert proxy.cut == cuts
            offsets = [entry["offset"] for entry in logs if entry["event"] == "upload_started"]
            # 3.3 MB lie between two cuts: frames stay at 128 KiB, one under way.
            costs = proxy.repeated("up", offsets, rig.size)
            assert max(costs) <= CUT_FRAME + CALLS, costs
            assert receipt.status == federation_pb2.UPDATE_STATUS_ACCEPTED
            assert proxy.up < 1.05 * rig.size
            (arrived,) = rig.desk.accepted
            assert arrived.bytes_up <= proxy.up

    asyncio.run(main())


def test_a_download_cut_again_and_again_loses_little(tmp_path: Path) -> None:
    async def main() -> None:
        rig, cuts = TransferRig(tmp_path, 20), 5
        async with rig.serving() as address:
            limits = deque([rig.size // (cuts + 1)] * cuts)
            async with (
                CuttingProxy(address, cuts_down=limits) as proxy,
                rig.client(proxy.address) as (peer, link),
            ):
                got = await download(peer, rig.ref, "task-1", tmp_path / "got", link)
            assert proxy.cut == cuts
            assert got.read_bytes() == rig.payload.read_bytes()
            assert proxy.down < 1.10 * rig.size

    asyncio.run(main())


def test_every_frame_is_acknowledged_once_it_is_written(tmp_path: Path) -> None:
    async def main() -> None:
        rig = TransferRig(tmp_path, 1)
        partial = partial_path(rig.store.incoming("task-1", file_sha256(rig.payload).hex()))
        data = rig.payload.read_bytes()
        async with rig.serving() as address, rig.client(address) as (peer, _):
            call = peer.stub.Upload()
            await call.write(opening(rig))
            assert (await call.read()).acknowledged == 0
            for at in range(0, 5 * 1000, 1000):
                await call.write(frame(data, at, 1000))
                assert (await call.read()).acknowledged == at + 1000
                assert partial.stat().st_size == at + 1000
            # Two more reach the server, and the connection breaks.
            await call.write(frame(data, 5000, 1000))
            await call.write(frame(data, 6000, 1000))
            await call.read()
            call.cancel()
            await until(lambda: not rig.service._uploads._uploading, "the stream is gone")
            assert partial.stat().st_size in (6000, 7000)

    asyncio.run(main())


def test_a_message_longer_than_a_frame_is_not_even_read(tmp_path: Path) -> None:
    async def main() -> None:
        rig = TransferRig(tmp_path, 4)
        async with rig.serving() as address, rig.client(address) as (peer, _):
            call = peer.stub.Upload()
            await call.write(opening(rig))
            await call.read()
            await call.write(frame(rig.payload.read_bytes(), 0, 2 * MIB))
            assert await call.code() is not grpc.StatusCode.OK
            partial = partial_path(rig.store.incoming("task-1", file_sha256(rig.payload).hex()))
            assert partial.stat().st_size == 0

    asyncio.run(main())


def opening(rig: TransferRig, task_id: str = "task-1", name: str = "c0") -> object:
    return federation_pb2.UploadMessage(
        open=federation_pb2.UploadOpen(
            name=name, session=f"session-{name}", task_id=task_id, payload=rig.ref, samples=1
        )
    )


def frame(data: bytes, at: int, count: int) -> object:
    piece = data[at : at + count]
    return federation_pb2.UploadMessage(
        frame=common_pb2.Frame(offset=at, data=piece, crc32=zlib.crc32(piece))
    )
