"""Payloads over breaks, restarts and damage, against real sockets."""

from __future__ import annotations

import asyncio
import errno
import gc
import hashlib
import time

import grpc
import pytest
from client_cases import put_update, random_bytes
from fake_server import FRAME, FakeServer, run
from pydantic import ValidationError
from structlog.testing import capture_logs

from fedclient.desk import send
from fedclient.errors import TransferError
from fedclient.outbox import Outbox, UpdateMeta
from fedclient.transfer.download import DAMAGED_ATTEMPTS, download
from fedclient.transfer.peer import Patience
from fedclient.transfer.speed import LinkRecord
from fedclient.transfer.upload import UNREADABLE_ATTEMPTS, upload
from motley.wire import iter_frames
from motley.wire.stubs import common_pb2

SIZE = 50 * FRAME + 123


def ref(payload: bytes) -> common_pb2.PayloadRef:
    return common_pb2.PayloadRef(sha256=hashlib.sha256(payload).digest(), size=len(payload))


def fetch(desk, payload: bytes):
    target = desk.state.root / "downloads" / ref(payload).sha256.hex()
    return download(desk.peer, ref(payload), "task-1", target, desk.link)


def test_download_resumes_at_its_length_after_breaks(options, desk):
    async def body():
        server, payload = await FakeServer().start(), random_bytes(SIZE)
        server.payloads[ref(payload).sha256] = payload
        server.break_after.extend([10 * FRAME, 7 * FRAME])
        async with desk(options(server)) as made:
            path = await fetch(made, payload)
            assert path.read_bytes() == payload
            assert server.down_offsets == [0, 10 * FRAME, 17 * FRAME]
            assert made.link.speed.download > 0
            await fetch(made, payload)
            assert len(server.down_offsets) == 3, "a payload that is held is not fetched again"

    run(body)


def test_download_goes_on_after_a_restart_of_the_client(options, desk):
    async def body():
        server, payload = await FakeServer().start(), random_bytes(SIZE)
        server.payloads[ref(payload).sha256] = payload
        async with desk(options(server)) as made:
            partial = made.state.root / "downloads" / (ref(payload).sha256.hex() + ".part")
            partial.write_bytes(payload[:9999])
        async with desk(options(server)) as made:
            assert (await fetch(made, payload)).read_bytes() == payload
        assert server.down_offsets == [9999]

    run(body)


def test_a_partial_file_with_wrong_bytes_is_fetched_again(options, desk):
    async def body():
        server, payload = await FakeServer().start(), random_bytes(SIZE)
        server.payloads[ref(payload).sha256] = payload
        async with desk(options(server)) as made:
            partial = made.state.root / "downloads" / (ref(payload).sha256.hex() + ".part")
            partial.write_bytes(bytes(500))
            assert (await fetch(made, payload)).read_bytes() == payload
        assert server.down_offsets == [500, 0]

    run(body)


def test_a_held_payload_that_the_disk_cannot_read_is_fetched_again(options, desk, monkeypatch):
    def unreadable(path):
        raise OSError(errno.EIO, "Input/output error")

    async def body():
        server, payload = await FakeServer().start(), random_bytes(5 * FRAME)
        server.payloads[ref(payload).sha256] = payload
        async with desk(options(server)) as made:
            held = await fetch(made, payload)
            monkeypatch.setattr("fedclient.transfer.download.file_sha256", unreadable)
            held.write_bytes(random_bytes(5 * FRAME)[::-1])
            again = await fetch(made, payload)
            assert again.read_bytes() == payload
        await server.stop()

    run(body)


def test_damaged_frames_are_asked_for_again_and_given_up_at_last(options, desk):
    async def body():
        server, payload = await FakeServer().start(), random_bytes(SIZE)
        server.payloads[ref(payload).sha256] = payload
        server.damage_frames = 1
        async with desk(options(server)) as made:
            assert (await fetch(made, payload)).read_bytes() == payload
            other = random_bytes(SIZE + 1)
            server.payloads[ref(other).sha256] = other
            server.damage_frames = 10**6
            with pytest.raises(TransferError, match=f"damaged {DAMAGED_ATTEMPTS} times"):
                await fetch(made, other)

    run(body)


def test_damage_with_progress_between_never_gives_a_download_up(options, desk):
    async def body():
        server, payload = await FakeServer().start(), random_bytes(SIZE)
        server.payloads[ref(payload).sha256] = payload
        server.damage_every = 5
        async with desk(options(server)) as made:
            assert (await fetch(made, payload)).read_bytes() == payload
        assert len(server.down_offsets) > 2 * DAMAGED_ATTEMPTS

    run(body)


def test_a_payload_that_is_whole_and_wrong_is_given_up_though_its_link_breaks(options, desk):
    async def body():
        server, payload = await FakeServer().start(), random_bytes(SIZE)
        server.payloads[ref(payload).sha256] = payload[::-1]
        server.break_after.extend([20 * FRAME] * 100)
        async with desk(options(server)) as made:
            with pytest.raises(TransferError, match=f"damaged {DAMAGED_ATTEMPTS} times"):
                await fetch(made, payload)
        assert server.down_offsets.count(0) == DAMAGED_ATTEMPTS

    run(body)


def test_a_payload_the_server_does_not_have_ends_the_download(options, desk):
    async def body():
        server = await FakeServer().start()
        async with desk(options(server)) as made:
            with pytest.raises(TransferError, match="no such payload"):
                await fetch(made, b"never announced")

    run(body)


def test_upload_resumes_at_the_acknowledged_offset(options, desk):
    async def body():
        server, content = await FakeServer().start(), random_bytes(3 * 1024**2 + 77)
        server.break_after.extend([1_500_000, 700_001])
        async with desk(options(server)) as made:
            update = put_update(made.outbox, content)
            assert await send(made, update)
            assert server.updates["task-1"] == content
            assert server.up_offsets == [0, 1_500_000, 2_200_001]
            assert made.outbox.recover() == []
            assert LinkRecord(made.state.root / "link.json").speed.upload > 0

    run(body)


def test_upload_survives_a_restart_of_the_server(options, desk):
    async def body():
        server, content = await FakeServer().start(), random_bytes(2 * 1024**2)
        await server.stop()
        async with desk(options(server)) as made:
            update = put_update(made.outbox, content)
            sending = asyncio.create_task(upload(made.peer, update, made.link))
            await asyncio.sleep(0)
            await server.start()
            receipt = await sending
            assert not receipt.duplicate
            again = await upload(made.peer, update, made.link)
            assert again.duplicate, "sent twice counts once"

    run(body)


@pytest.mark.parametrize(
    ("status", "words", "code"),
    [
        ("INVALID_ARGUMENT", "[update] tensor w is not finite", "update"),
        ("NOT_FOUND", "[unknown_task] no task 'task-1'", "unknown_task"),
        ("FAILED_PRECONDITION", "words without a code", "failed_precondition"),
    ],
)
def test_a_final_refusal_drops_the_update_and_is_reported(options, desk, status, words, code):
    async def body():
        server = await FakeServer(final=grpc.StatusCode[status], refusal=words).start()
        async with desk(options(server)) as made:
            assert not await send(made, put_update(made.outbox, b"x" * 100))
            assert made.outbox.recover() == []
        (report,) = server.reports
        assert (report.task_id, report.failure.code) == ("task-1", code)
        assert words in report.failure.message
        assert not report.failure.permanent

    run(body)


def test_a_dropped_update_of_a_task_that_the_server_forgot_is_no_trouble(options, desk):
    async def body():
        gone = grpc.StatusCode.NOT_FOUND
        server = await FakeServer(final=gone, report_status=gone).start()
        async with desk(options(server)) as made:
            assert not await send(made, put_update(made.outbox, b"x" * 100))
            assert made.outbox.recover() == []
        assert len(server.reports) == 1

    run(body)


def test_metrics_of_a_kept_update_are_finite(tmp_path):
    kept = put_update(Outbox(tmp_path), b"whole")
    for number in ("nan", "inf"):
        with pytest.raises(ValidationError, match="finite"):
            UpdateMeta(**{**kept.meta.model_dump(), "metrics": {"loss": float(number)}})


def test_a_stream_that_stops_is_broken_off_after_the_idle_time(options, desk):
    async def body():
        server, payload = await FakeServer().start(), random_bytes(SIZE)
        server.payloads[ref(payload).sha256] = payload
        healthy = FakeServer.Download

        async def stuck_once(request, context):
            if not server.down_offsets:
                server.down_offsets.append(request.offset)
                await asyncio.Event().wait()
            async for frame in healthy(server, request, context):
                yield frame

        server.Download = stuck_once  # type: ignore[method-assign]
        await server.stop()
        await server.start()
        async with desk(options(server)) as made:
            object.__setattr__(made.peer, "patience", Patience(idle_seconds=0.2))
            assert (await fetch(made, payload)).read_bytes() == payload
        assert server.down_offsets == [0, 0]

    run(body)


def test_work_cut_short_is_removed_from_the_outbox(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.prepare("half-done").write_bytes(b"only the update, no meta.json")
    kept = put_update(outbox, b"whole", "done")
    shorter = put_update(outbox, b"truncated", "damaged")
    shorter.payload.write_bytes(b"trunc")
    assert outbox.recover() == [kept]
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_names_that_no_task_has_are_left_alone_in_the_outbox(tmp_path):
    outbox = Outbox(tmp_path)
    kept = put_update(outbox, b"whole", "done")
    (tmp_path / ".DS_Store").write_bytes(b"a file manager's")
    (tmp_path / "copy of done").mkdir()
    with capture_logs() as logs:
        assert outbox.recover() == [kept]
    assert {path.name for path in tmp_path.iterdir()} == {"done", ".DS_Store", "copy of done"}
    assert [(entry["event"], entry["name"]) for entry in logs] == [
        ("outbox_entry_skipped", ".DS_Store"),
        ("outbox_entry_skipped", "copy of done"),
    ]


def test_an_update_that_the_disk_spoiled_is_not_sent_for_ever(options, desk):
    async def body():
        server = await FakeServer(final=grpc.StatusCode.DATA_LOSS).start()
        async with desk(options(server)) as made:
            update = put_update(made.outbox, random_bytes(5000))
            update.payload.write_bytes(bytes(5000))
            assert not await send(made, update)
        assert server.reports[0].failure.code == "storage"

    run(body)


def failing_reads(monkeypatch, failures):
    """Let the next `failures` frames be unreadable; return how many were asked for."""
    asked = []

    def read(path, offset, size):
        asked.append(offset)
        if len(asked) <= failures:
            raise OSError(errno.EIO, "Input/output error")
        return iter_frames(path, offset, size)

    monkeypatch.setattr("fedclient.transfer.upload.iter_frames", read)
    return asked


def test_an_update_that_the_disk_cannot_read_is_given_up_and_reported(options, desk, monkeypatch):
    async def body():
        server = await FakeServer().start()
        asked = failing_reads(monkeypatch, 10**6)
        async with desk(options(server)) as made:
            update = put_update(made.outbox, random_bytes(5000))
            began = time.monotonic()
            assert not await send(made, update)
            assert time.monotonic() - began < made.peer.patience.idle_seconds
            assert made.outbox.recover() == []
        failure = server.reports[0].failure
        assert failure.code == "storage"
        assert "Input/output error" in failure.message
        assert len(asked) == UNREADABLE_ATTEMPTS

    run(body)


def test_a_disk_that_stumbles_costs_no_update(options, desk, monkeypatch):
    async def body():
        server, content = await FakeServer().start(), random_bytes(5000)
        failing_reads(monkeypatch, UNREADABLE_ATTEMPTS - 1)
        async with desk(options(server)) as made:
            assert await send(made, put_update(made.outbox, content))
        assert server.updates["task-1"] == content

    run(body)


def test_an_update_that_was_cut_short_in_mid_transfer_is_given_up(options, desk, monkeypatch):
    async def body():
        server, content = await FakeServer().start(), random_bytes(3 * 1024**2)
        async with desk(options(server)) as made:
            update = put_update(made.outbox, content)

            def cut(path, offset, size):
                if offset and update.payload.stat().st_size == len(content):
                    update.payload.write_bytes(content[:offset])
                return iter_frames(path, offset, size)

            monkeypatch.setattr("fedclient.transfer.upload.iter_frames", cut)
            assert not await send(made, update)
        assert server.reports[0].failure.code == "storage"
        assert "cut short" in server.reports[0].failure.message

    run(body)


def test_a_stream_that_breaks_while_the_upload_is_cancelled_leaves_no_stack_trace(options, desk):
    """As when a certificate runs out: the server ends the call, and the daemon its work."""

    class Breaking:
        async def write(self, message: object) -> None:
            pass

        async def read(self) -> object:
            assert uploading is not None
            uploading.cancel()
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "[expired]"
            )

        def cancel(self) -> None:
            pass

    class Stub:
        def Upload(self) -> Breaking:  # noqa: N802
            return Breaking()

    uploading: asyncio.Task[object] | None = None
    never_retrieved: list[dict[str, object]] = []

    async def body():
        nonlocal uploading
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: never_retrieved.append(context)
        )
        server = await FakeServer().start()
        async with desk(options(server)) as made:
            object.__setattr__(made.peer, "stub", Stub())
            update = put_update(made.outbox, b"x" * 100)
            uploading = asyncio.create_task(upload(made.peer, update, made.link))
            await asyncio.wait({uploading})
            assert uploading.cancelled()
            uploading = None  # what only it held is told to the loop when it goes
            gc.collect()
            assert never_retrieved == []

    run(body)
