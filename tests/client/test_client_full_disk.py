"""A device whose disk takes no more: real file systems of some hundred kilobytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from client_cases import put_update, random_bytes
from fake_server import FRAME, FakeServer, run
from small_disk import fill, small_disk
from test_client_daemon import ended, plan
from test_client_transfer import fetch, ref

from fedclient.disk import Disk
from fedclient.errors import StateDirectoryError
from fedclient.outbox import Outbox
from fedclient.personal import PersonalFiles
from fedclient.state import StateDirectory

SIZE = 100 * FRAME + 77


@pytest.fixture
def disk(tmp_path: Path):
    with small_disk(tmp_path / "disk", 2) as folder:
        yield folder


def values(number: float) -> dict[str, np.ndarray]:
    return {"w": np.full(50_000, number, np.float32)}


def test_a_download_goes_on_where_the_disk_was_full(options, desk, disk):
    async def body():
        server, payload = await FakeServer().start(), random_bytes(SIZE)
        server.payloads[ref(payload).sha256] = payload
        async with desk(options(server, state=disk / "state")) as made:
            filler = fill(disk, but=20 * FRAME)
            with pytest.raises(OSError, match="No space left"):
                await fetch(made, payload)
            partial = disk / "state" / "downloads" / f"{ref(payload).sha256.hex()}.part"
            kept = partial.read_bytes()
            assert kept, "what fitted stays"
            assert kept == payload[: len(kept)], "and no half of a frame"
            filler.unlink()
            assert (await fetch(made, payload)).read_bytes() == payload
            assert server.down_offsets == [0, len(kept)]

    run(body)


def test_a_partial_beyond_the_servers_payload_is_dropped(options, desk):
    async def body():
        server, payload = await FakeServer().start(), random_bytes(SIZE)
        server.payloads[ref(payload).sha256] = payload
        server.out_of_range = 1
        async with desk(options(server)) as made:
            partial = made.state.root / "downloads" / (ref(payload).sha256.hex() + ".part")
            partial.write_bytes(payload[:9999])
            assert (await fetch(made, payload)).read_bytes() == payload
        assert server.down_offsets == [9999, 0]

    run(body)


def test_a_personal_state_that_does_not_fit_leaves_the_counted_one(disk):
    folder = disk / "runs" / "run-1"
    store = PersonalFiles(folder)
    store.save("t1", values(1))
    store.load("t1")
    filler = fill(disk, but=20 * FRAME)
    with pytest.raises(OSError, match="No space left"):
        store.save("t2", values(2))
    assert [path.name for path in folder.iterdir()] == ["counted-t1.payload"]
    assert (PersonalFiles(folder).load("t1")["w"] == 1).all()
    filler.unlink()
    store.save("t2", values(2))
    assert (store.load("t2")["w"] == 2).all()


def test_promotion_needs_no_room(disk):
    store = PersonalFiles(disk / "runs" / "run-1")
    store.save("t1", values(1))
    store.load("t1")
    store.save("t2", values(2))
    fill(disk)
    assert (store.load("t2")["w"] == 2).all()


def test_an_update_is_complete_or_not_there(disk):
    outbox = Outbox(disk / "outbox")
    kept = put_update(outbox, random_bytes(20 * FRAME), "kept")
    filler = fill(disk)
    with pytest.raises(OSError, match="No space left"):
        put_update(outbox, random_bytes(FRAME), "half")
    assert outbox.find("half") is None
    assert outbox.recover() == [kept], "what is complete stays, the rest goes"
    outbox.remove("kept")
    filler.unlink()
    assert put_update(outbox, random_bytes(FRAME), "half") == outbox.find("half")


@pytest.mark.processes
@pytest.mark.parametrize("room", [0, 4096], ids=["update", "commit"])
def test_a_full_device_reports_it_and_does_the_next_task(
    options, daemon, linear_broadcast, disk, room
):
    """Without room the update does not fit, with one page its `meta.json` does not."""

    async def body():
        server = await FakeServer().start()
        async with daemon(options(server, state=disk / "state")) as desk:
            warm = server.offer(linear_broadcast, plan=plan(), task_id="warm")
            await server.until(lambda: warm.task_id in server.updates)
            await server.until(lambda: not list((disk / "state" / "outbox").iterdir()))
            filler = fill(disk, but=room)
            full = server.offer(linear_broadcast, plan=plan(), task_id="full", round=2)
            await server.until(lambda: ended(server, full) or full.task_id in server.updates)
            filler.unlink()
            failure = server.reports[-1].failure
            assert (failure.code, failure.permanent) == ("storage", False)
            assert "No space left" in failure.message
            assert not list((disk / "state" / "outbox").iterdir())
            after = server.offer(linear_broadcast, plan=plan(), task_id="after", round=2)
            await server.until(lambda: after.task_id in server.updates)
            assert desk.runner.pid is not None

    run(body)


def test_a_note_that_does_not_fit_leaves_nothing_behind(disk):
    target = disk / "link.json"
    Disk().note(target, b"before")
    fill(disk, but=0)
    with pytest.raises(OSError, match="No space left"):
        Disk().note(target, b"x" * 100_000)
    assert target.read_bytes() == b"before"
    assert [path for path in disk.iterdir() if path.name.startswith("link.json")] == [target]


def test_a_state_directory_without_room_says_what_to_do(disk):
    fill(disk, but=0)
    with pytest.raises(StateDirectoryError, match="No space left on device; make room"):
        StateDirectory(disk / "state").open("phone-1")
