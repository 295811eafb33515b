"""Crashes between the steps that store an update, and disks that take no more."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from bench import Bench, ManualClock, moved, runfile
from small_disk import fill, small_disk
from sqlalchemy.exc import OperationalError
from test_engine import finish_round, started
from test_service import Rig, one_client_run, pb, refused, running

from fedserver.errors import StorageError
from fedserver.model_process import run_job
from fedserver.rounds.closing import abandon_open
from fedserver.rounds.driver import Driver
from fedserver.rounds.jobs import FoldJob, OpenJob
from fedserver.rounds.tasks import TaskDesk
from fedserver.storage.database import DatabaseThread
from fedserver.storage.payloads import PayloadStore
from fedserver.storage.trouble import disk_trouble
from motley.wire import FrameWriter


class CrashError(Exception):
    pass


def full(*arguments: object, **named: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def crash_before(function: Callable[..., object]) -> Callable[..., object]:
    def crashing(*arguments: object, **named: object) -> object:
        raise CrashError

    return crashing


def crash_after(function: Callable[..., object]) -> Callable[..., object]:
    def crashing(*arguments: object, **named: object) -> object:
        function(*arguments, **named)
        raise CrashError

    return crashing


STEPS = [
    (FrameWriter, "verify"),
    (PayloadStore, "keep"),
    (TaskDesk, "accept_all"),
]


@pytest.mark.parametrize("crash", [crash_before, crash_after])
@pytest.mark.parametrize(
    ("owner", "step"), STEPS, ids=lambda value: getattr(value, "__name__", value)
)
def test_no_byte_comes_again_after_a_crash_at_any_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    step: str,
    crash: Callable[[Callable[..., object]], Callable[..., object]],
) -> None:
    async def main() -> None:
        async with running(tmp_path / "data") as rig:
            task, broadcast = await one_client_run(rig)
            update = rig.update(task, broadcast)
            with monkeypatch.context() as patch:
                patch.setattr(owner, step, crash(getattr(owner, step)))
                with pytest.raises(grpc.aio.AioRpcError):
                    await rig.upload(task, update)
        async with running(tmp_path / "data") as rig:
            receipt = await rig.upload(task, update)
            assert receipt.status == pb.UPDATE_STATUS_ACCEPTED
            assert rig.acknowledged == ([] if receipt.duplicate else [len(update)])
            while (await rig.operator("show", "test"))["round"] == 0:
                await asyncio.sleep(0.02)
            records = await asyncio.to_thread(replay, rig)
            assert [record["agrees"] for record in records] == [True]
            assert not list((rig.root / "incoming").iterdir())

    asyncio.run(main())


def replay(rig: Rig) -> list[dict]:
    from fedserver.client import Operator

    with Operator(rig.root) as operator:
        return list(operator.replay("test"))


def test_bytes_of_another_digest_are_not_taken_for_these(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path / "data") as rig:
            task, broadcast = await one_client_run(rig)
            with pytest.raises(ConnectionError):
                await rig.upload(task, rig.update(task, broadcast, by=0.1), break_at=30_000)
            receipt = await rig.upload(task, rig.update(task, broadcast, by=0.2))
            assert rig.acknowledged[0] == 0
            assert receipt.status == pb.UPDATE_STATUS_ACCEPTED

    asyncio.run(main())


def test_a_stored_payload_is_never_written_into(tmp_path: Path) -> None:
    store, digest = PayloadStore(tmp_path, reserve=0), "ab" * 32
    partial = store.begin_incoming("t", digest, 10).with_name(f"t+{digest}.part")
    partial.write_bytes(b"0123456789")
    with store.claimed(digest):
        store.keep(partial, digest)
    for size in (5, 20):  # the same digest announced with another size, after a crash
        with FrameWriter(store.begin_incoming("t", digest, size), size) as writer:
            assert writer.received == 0
        assert store.path(digest).read_bytes() == b"0123456789"


def test_without_hard_links_a_copy_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, digest = PayloadStore(tmp_path), "ab" * 32
    whole = tmp_path / "whole"
    whole.write_bytes(b"bytes")
    monkeypatch.setattr(os, "link", lambda *a: (_ for _ in ()).throw(OSError(errno.EPERM, "no")))
    store.keep(whole, digest)
    assert store.path(digest).read_bytes() == whole.read_bytes()
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    ("owner", "step"), [(FrameWriter, "_append"), (FrameWriter, "sync"), (PayloadStore, "keep")]
)
def test_an_upload_onto_a_full_disk_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, step: str
) -> None:
    async def main() -> None:
        async with running(tmp_path / "data") as rig:
            task, broadcast = await one_client_run(rig)
            update = rig.update(task, broadcast)
            # A write after the refusal would hide its status behind one of gRPC's own.
            spoil = {"silent_at": 1} if step == "_append" else {}
            with monkeypatch.context() as patch:
                patch.setattr(owner, step, full)
                with refused(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, "[storage] the disk of the server"
                ):
                    await rig.upload(task, update, **spoil)
            assert (await rig.operator("show", "test"))["current"]["status"] == "open"
            receipt = await rig.upload(task, update)
            assert receipt.status == pb.UPDATE_STATUS_ACCEPTED

    asyncio.run(main())


def test_too_little_free_space_is_said_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PayloadStore(tmp_path, reserve=2**60)
    with pytest.raises(StorageError, match="kept in reserve"):
        store.begin_incoming("t", "ab" * 32, 10)
    assert disk_trouble(StorageError("x")).startswith("the disk of the server is full")


class Rounds:
    """A bench with the driver that a server has, on the bench's clock."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.database = DatabaseThread()
        self.driver = Driver(bench.engine, self.database, bench.payloads)

    async def until(self, condition: Callable[[], bool]) -> None:
        running = asyncio.create_task(self.driver.run())
        try:
            for _ in range(1000):
                assert not running.done(), running.exception()
                if await self.database(condition):
                    return
                self.bench.clock.now += 1.0  # the pauses pass
                self.driver.wake(())
                await asyncio.sleep(0.005)
            raise AssertionError("the condition never held")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def test_a_run_whose_preparation_finds_the_disk_full_is_prepared_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    bench.arrive("c0", "c1")
    run_id = bench.runs.submit(runfile(), "test")

    async def main() -> None:
        rounds = Rounds(bench)
        with monkeypatch.context() as patch:
            patch.setattr("fedserver.rounds.jobs.run_job", full)
            await rounds.until(lambda: "is full" in bench.record(run_id)["reason"])
            record = await rounds.database(bench.record, run_id)
            assert record["status"] == "preparing"
        await rounds.until(lambda: bench.record(run_id)["status"] in ("waiting", "running"))
        rounds.driver.close()
        rounds.database.close()

    asyncio.run(main())


@pytest.mark.parametrize("job", [OpenJob, FoldJob])
@pytest.mark.parametrize("error", [full, None], ids=["file", "database"])
def test_a_job_that_finds_the_disk_full_leaves_the_round_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: type, error: object
) -> None:
    bench = Bench(tmp_path)
    run_id, names = started(bench, 2, rounds=3)
    for name in names:
        bench.send(name, moved(bench.broadcast(bench.task(name)), 0.1))

    def database_full(*arguments: object) -> None:
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    async def main() -> None:
        rounds = Rounds(bench)
        with monkeypatch.context() as patch:
            if error:
                patch.setattr(job, "run", full)
            else:
                patch.setattr(bench.engine, "apply", database_full)
            await rounds.until(lambda: "is full" in bench.record(run_id)["reason"])
            record = await rounds.database(bench.record, run_id)
            assert (record["status"], record["history"][1:]) == ("running", [])
        await rounds.until(lambda: bench.record(run_id)["round"] == 1)
        await rounds.until(lambda: bench.record(run_id)["reason"] == "")
        record = await rounds.database(bench.record, run_id)
        assert all(entry["status"] == "closed" for entry in record["history"])
        assert not list((tmp_path / "scratch").iterdir())
        rounds.driver.close()
        rounds.database.close()

    asyncio.run(main())


def test_a_transition_that_fails_is_taken_back_in_memory_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    run_id, names = started(bench, 2)
    before = dict(bench.engine.deadlines)

    def cut_short() -> None:
        with bench.engine.transition() as tx:
            abandon_open(bench.engine, tx, run_id, "x")
            raise CrashError

    with pytest.raises(CrashError):
        cut_short()
    assert bench.engine.deadlines == before
    finish_round(bench, names)
    assert bench.record(run_id)["round"] == 1


class JumpingClock(ManualClock):
    """A wall clock that somebody sets to another time."""

    offset = 0.0

    def wall(self) -> float:
        return self.now + self.offset


@pytest.mark.parametrize("jump", [-(10.0**8), 10.0**8])
def test_a_wall_clock_that_jumps_changes_no_deadline_and_no_duration(
    tmp_path: Path, jump: float
) -> None:
    bench = Bench(tmp_path)
    bench.clock = bench.engine.clock = clock = JumpingClock()
    bench.engine.started = clock.now - 1000
    run_id, names = started(bench, 2, sections="[round]\ndeadline_seconds = 60\n")
    clock.now += 5
    clock.offset = jump
    assert bench.record(run_id)["current"]["seconds_left"] == 55
    finish_round(bench, names)
    history = bench.record(run_id)["history"]
    assert [entry["seconds"]["collect"] for entry in history] == [5.0]
    clock.now += 61
    bench.arrive(*names)
    bench.settle()
    assert bench.record(run_id)["history"][-1]["status"] == "abandoned"


def test_kill_loses_time_in_favour_of_clients_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run_id, _ = started(bench, 2, sections="[round]\ndeadline_seconds = 60\n")
    bench.clock.now += 20
    bench.engine.save_time_left()
    bench.clock.now += 9  # killed before the next note
    bench.clock.now += 10_000  # and down for long
    bench.restart()
    assert bench.record(run_id)["current"]["seconds_left"] == 40


def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    async def main(disk: Path) -> None:
        async with running(disk / "data", reserve=0) as rig:
            task, broadcast = await one_client_run(rig)
            update = rig.update(task, broadcast)
            filler = fill(disk)
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "[storage]"):
                await rig.upload(task, update)
            assert (await rig.operator("show", "test"))["current"]["status"] == "open"
            filler.unlink()
            receipt = await rig.upload(task, update)
            assert receipt.status == pb.UPDATE_STATUS_ACCEPTED

    with small_disk(tmp_path / "disk", 4) as disk:
        asyncio.run(main(disk))


def test_a_child_that_meets_a_full_disk_says_so(tmp_path: Path) -> None:
    job = {
        "kind": "prepare",
        "workload": "digits",
        "arguments": {},
        "mappings": {},
        "global_variant": "",
        "variants": [],
        "seed": 1,
        "init": "",
        "quantizes_ends": False,
        "private": False,
        "noise": {},
    }
    with small_disk(tmp_path / "disk", 1) as disk:
        filler = fill(disk, but=8192)
        with pytest.raises(OSError, match="No space left") as caught:
            run_job({**job, "out": str(disk / "initial")})
        assert disk_trouble(caught.value).startswith("the disk of the server is full")
        assert [path.name for path in disk.iterdir()] == ["filler"]
        filler.unlink()
        assert run_job({**job, "out": str(disk / "initial")})["size"] == (
            (disk / "initial").stat().st_size
        )


def test_bytes_that_another_upload_put_there_are_synced_before_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, digest = PayloadStore(tmp_path), "ab" * 32
    whole = tmp_path / "whole"
    whole.write_bytes(b"bytes")
    store.path(digest).parent.mkdir()
    os.link(whole, store.path(digest))  # by one that has not synced the folder yet
    synced: list[Path] = []
    monkeypatch.setattr("fedserver.storage.payloads.sync_folder", synced.append)
    store.keep(whole, digest)
    assert synced == [tmp_path / "payloads", store.path(digest).parent]
    synced.clear()
    written = tmp_path / "written"
    written.write_bytes(b"bytes")
    store.adopt(written, digest)
    assert synced == [store.path(digest).parent]
