"""Packed frames that several downloads share."""

from __future__ import annotations

import asyncio
import os
import threading
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bench import Bench, runfile
from structlog.testing import capture_logs
from test_service import running

from fedserver.errors import UnknownTaskError
from fedserver.rounds.standing import Standing
from fedserver.service.broadcasts import Broadcasts
from fedserver.service.downloads import Downloads
from fedserver.service.exchange import Exchange
from fedserver.service.federation import FederationService
from fedserver.service.limits import Caller, Guard, Limits
from fedserver.service.quota import Quota
from fedserver.service.transfers import FileThreads, FrameMemory, Turns
from fedserver.storage.database import DatabaseThread
from motley.wire.framing import read_frame
from motley.wire.stubs import federation_pb2 as pb

DATA = bytes(range(256)) * 40


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    path = tmp_path / "digest"
    path.write_bytes(DATA)
    return path


def scenario(body: Callable[[FileThreads], Awaitable[None]]) -> None:
    async def main() -> None:
        files = FileThreads()
        try:
            await body(files)
        finally:
            files.close()

    asyncio.run(main())


def open_files(path: Path) -> list[str]:
    """Return this process's handles of a file, or of those under a folder."""
    handles = Path("/proc/self/fd").iterdir()
    return [str(h) for h in handles if os.path.realpath(h).startswith(str(path))]


def test_a_frame_is_read_once_for_all(payload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    real = os.pread

    def counted(file: int, size: int, offset: int) -> bytes:
        reads.append(offset)
        return real(file, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    broadcasts = Broadcasts()

    async def body(files: FileThreads) -> None:
        async with (
            broadcasts.reading(payload, files) as first,
            broadcasts.reading(payload, files) as second,
        ):
            for offset in range(0, len(DATA), 1000):
                size = min(1000, len(DATA) - offset)
                packed = first(offset, size)
                assert second(offset, size) is packed
                frame = read_frame(packed)
                assert frame.offset == offset
                assert bytes(frame.data) == DATA[offset : offset + size]
                assert frame.crc32 == zlib.crc32(frame.data)

    scenario(body)
    assert reads == list(range(0, len(DATA), 1000))


def test_other_sizes_and_files_are_other_frames(payload: Path) -> None:
    other = payload.with_name("other")
    other.write_bytes(DATA[::-1])
    broadcasts = Broadcasts()

    async def body(files: FileThreads) -> None:
        async with (
            broadcasts.reading(payload, files) as mine,
            broadcasts.reading(other, files) as theirs,
        ):
            assert bytes(read_frame(mine(0, 10)).data) == DATA[:10]
            assert bytes(read_frame(mine(0, 20)).data) == DATA[:20]
            assert bytes(read_frame(theirs(0, 10)).data) == DATA[::-1][:10]

    scenario(body)


def test_memory_is_bounded_and_goes_with_the_last_reader(payload: Path) -> None:
    broadcasts = Broadcasts(most=3500)

    async def body(files: FileThreads) -> None:
        async with broadcasts.reading(payload, files) as packed:
            for offset in range(0, 10_000, 1000):
                packed(offset, 1000)
                assert broadcasts.held <= 3500
            assert broadcasts.held > 2500
            async with broadcasts.reading(payload, files):
                pass
            assert broadcasts.held > 2500
        assert broadcasts.held == 0

    scenario(body)


def test_a_removed_file_is_read_to_its_end(payload: Path) -> None:
    broadcasts = Broadcasts()

    async def body(files: FileThreads) -> None:
        async with broadcasts.reading(payload, files) as packed:
            payload.unlink()
            assert bytes(read_frame(packed(5, 10)).data) == DATA[5:15]

    scenario(body)


def test_readers_on_many_threads_get_their_own_bytes(payload: Path) -> None:
    broadcasts = Broadcasts(most=3500)

    async def body(files: FileThreads) -> None:
        async with broadcasts.reading(payload, files) as packed:

            def read_all(size: int) -> bytes:
                offsets = range(0, len(DATA), size)
                return b"".join(
                    read_frame(packed(at, min(size, len(DATA) - at))).data for at in offsets
                )

            with ThreadPoolExecutor(6) as threads:
                assert set(threads.map(read_all, [100, 1000, 1000, 333, 1000, 100] * 5)) == {DATA}
        assert broadcasts.held == 0

    scenario(body)


def test_a_download_that_breaks_off_before_its_file_is_open_leaves_no_handle(payload: Path) -> None:
    broadcasts, go_on = Broadcasts(), threading.Event()

    async def read(files: FileThreads) -> None:
        async with broadcasts.reading(payload, files):
            pass

    async def body(files: FileThreads) -> None:
        busy = [files.start(go_on.wait, 60) for _ in range(4)]
        reads = [asyncio.create_task(read(files)) for _ in range(3)]
        await asyncio.sleep(0)
        for broken in reads:
            broken.cancel()
        await asyncio.sleep(0)
        go_on.set()
        ended = await asyncio.gather(*reads, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in ended)
        await asyncio.gather(*busy)

    scenario(body)
    assert open_files(payload) == []


def test_a_server_that_stops_lets_a_download_close_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes longer than the grace that calls are given, and gives in at the very end."""
    reading, go_on = threading.Event(), threading.Event()
    real_read, real_close = os.pread, FederationService.close

    def slow(file: int, size: int, offset: int) -> bytes:
        reading.set()
        go_on.wait(60)
        return real_read(file, size, offset)

    async def close(service: FederationService) -> None:
        go_on.set()
        await real_close(service)

    async def main() -> None:
        async with running(tmp_path / "data") as rig:
            await rig.operator("submit", runfile(clients=1, rounds=1), "test")
            task = await rig.task()
            monkeypatch.setattr(os, "pread", slow)
            monkeypatch.setattr(FederationService, "close", close)
            download = asyncio.create_task(rig.download(task))
            await asyncio.to_thread(reading.wait, 60)
        await asyncio.gather(download, return_exceptions=True)

    with capture_logs() as logs:
        asyncio.run(main())
    assert reading.is_set()
    assert [entry for entry in logs if entry["event"] == "call_failed"] == []
    assert open_files(tmp_path) == []


def test_a_payload_that_goes_while_a_client_waits_its_turn_ends_its_task(bench: Bench) -> None:
    bench.arrive("c0", "c1")
    bench.submit(runfile(clients=2))
    task = bench.task("c0")
    asked = pb.DownloadRequest(
        name="c0", session="s", task_id=task.task_id, sha256=task.payload_sha256
    )

    class Stream:
        async def write(self, message: object) -> None:
            pass

    async def body() -> None:
        turns, database, files = Turns(1), DatabaseThread(), FileThreads()

        async def nothing(*rest: object) -> None:
            pass

        guard = Guard(Limits(), bench.clock, names_are_proven=True, put_aside=nothing)
        downloads = Downloads(
            Exchange(
                engine=bench.engine,
                database=database,
                payloads=bench.payloads,
                guard=guard,
                quota=Quota(None, Standing(bench.engine), database, bench.clock),
                turns=turns,
                memory=FrameMemory(1 << 20),
                files=files,
            )
        )
        async with turns.turn("other", nothing):
            waiting = asyncio.create_task(downloads.send(asked, Caller("c0"), Stream()))
            while not turns.waiting:
                await asyncio.sleep(0.001)
            bench.payloads.path(task.payload_sha256.hex()).unlink()
        with pytest.raises(UnknownTaskError, match="waited its turn"):
            await waiting
        files.close()
        database.close()

    asyncio.run(body())
