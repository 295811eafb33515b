"""The loop with a real training process: good tasks, bad tasks, kills, restarts."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest
from client_cases import put_update, random_bytes
from fake_server import FakeServer, run
from structlog.testing import capture_logs

from fedclient.daemon import Daemon, warn_of_missing_data
from fedclient.outbox import Outbox
from fedclient.runner import WorkerRunner
from fedclient.transfer.peer import LONGEST_PAUSE
from motley.errors import WorkloadError
from motley.wire.stubs import common_pb2 as pb

pytestmark = pytest.mark.processes


def plan(**settings: float) -> pb.Plan:
    values = {"local_steps": 2, **settings}
    return pb.Plan(
        variant="linear",
        up_bits=32,
        down_bits=32,
        iterations=6,
        settings={
            name: pb.Scalar(integer=v) if isinstance(v, int) else pb.Scalar(real=v)
            for name, v in values.items()
        },
    )


def ended(server: FakeServer, task: pb.Task) -> bool:
    return any(report.task_id == task.task_id for report in server.reports)


def test_a_task_goes_from_offer_to_receipt(options, daemon, linear_broadcast):
    async def body():
        server = await FakeServer().start()
        task = server.offer(linear_broadcast, plan=plan())
        async with daemon(options(server)) as desk:
            await server.until(lambda: server.updates)
            pid = desk.runner.pid
            second = server.offer(linear_broadcast, plan=plan(), task_id="t-2", round=2)
            await server.until(lambda: second.task_id in server.updates)
            assert desk.runner.pid == pid, "the training process is reused"
            await server.until(lambda: not list((desk.state.root / "outbox").iterdir()))
        opened = server.opens[task.task_id]
        assert opened.samples == 30
        assert opened.metrics["peak_memory_bytes"] > 10**7
        assert len(server.down_offsets) == 1, "the same broadcast was not fetched twice"
        first = server.check_ins[0]
        assert (first.capabilities.protocol, first.capabilities.wire) == (1, 1)
        assert first.capabilities.workloads["linear"] == 3
        assert first.capabilities.algorithms["fedavg"] == 1
        assert "dense" in first.capabilities.encodings
        assert first.profile.cores >= 1
        assert first.session

    run(body)


def test_an_evaluation_is_reported_and_a_finished_model_kept(options, daemon, linear_broadcast):
    async def body():
        server = await FakeServer().start()
        server.offer(linear_broadcast, plan=plan(), kind=pb.TASK_KIND_EVALUATE, subject="global")
        server.offer(linear_broadcast, plan=plan(), kind=pb.TASK_KIND_FINISH)
        async with daemon(options(server)) as desk:
            await server.until(lambda: len(server.reports) == 2)
            models = desk.state.root / "models"
            assert sorted(p.name for p in models.iterdir()) == [
                "demo-run-1.json",
                "demo-run-1.motley",
            ]
            folder = desk.state.root / "downloads"
            await server.until(lambda: not list(folder.iterdir()))
        evaluated, finished = server.reports
        assert 0 <= evaluated.result.metrics["accuracy"] <= 1
        assert finished.result.metrics["packed_bytes"] > 0

    run(body)


def test_an_unmapped_workload_names_the_option_to_use(options, daemon):
    async def body():
        server = await FakeServer().start()
        server.offer(workload="speech")
        async with daemon(options(server)):
            await server.until(lambda: server.reports)
            failure = server.reports[0].failure
        assert (failure.code, failure.permanent) == (WorkloadError.code, True)
        assert "--workload speech=module:object" in failure.message

    run(body)


def test_whatever_a_task_raises_is_reported_and_the_daemon_lives(
    options, daemon, linear_broadcast, monkeypatch
):
    async def body():
        server, plainly = await FakeServer().start(), WorkerRunner.run

        async def run_once(runner, *arguments):
            monkeypatch.setattr(WorkerRunner, "run", plainly)
            raise ValueError("Separator is not found, and chunk exceed the limit")

        monkeypatch.setattr(WorkerRunner, "run", run_once)
        first = server.offer(linear_broadcast, plan=plan())
        async with daemon(options(server)):
            await server.until(lambda: ended(server, first))
            failure = server.reports[0].failure
            assert (failure.code, failure.permanent) == ("crash", False)
            assert "ValueError: Separator is not found" in failure.message
            second = server.offer(linear_broadcast, plan=plan(), task_id="t-2", round=2)
            await server.until(lambda: second.task_id in server.updates)

    run(body)


def test_a_task_that_dies_is_reported_and_the_next_one_works(
    options, daemon, linear_broadcast, tmp_path
):
    async def body():
        server, mark = await FakeServer().start(), tmp_path / "mark"
        async with daemon(options(server, data=f"x?mark={mark}")) as desk:
            for mode, code, words in [
                ("raise", "crash", "ValueError: a user's mistake"),
                ("kill", "worker_died", "SIGKILL"),
            ]:
                mark.write_text(mode)
                task = server.offer(linear_broadcast, plan=plan(), task_id=mode)
                await server.until(lambda task=task: ended(server, task))
                failure = server.reports[-1].failure
                assert failure.code == code
                assert words in failure.message
                assert not failure.permanent
                assert not list((desk.state.root / "outbox").iterdir()), "nothing is left behind"
            after = server.offer(linear_broadcast, plan=plan(), task_id="after")
            await server.until(lambda: after.task_id in server.updates)

    run(body)


def test_a_memory_limit_ends_in_out_of_memory(options, daemon, linear_broadcast, tmp_path):
    async def body():
        server, mark = await FakeServer().start(), tmp_path / "mark"
        mark.write_text("memory")
        server.offer(linear_broadcast, plan=plan())
        limited = options(server, data=f"x?mark={mark}", memory_limit=2 * 1024**3)
        async with daemon(limited):
            await server.until(lambda: server.reports)
            failure = server.reports[0].failure
            assert failure.code == "out_of_memory"
            assert "--memory-limit 2048M" in failure.message
            assert "MiB resident at its peak" in failure.message
            assert server.check_ins[0].profile.memory_bytes <= 2 * 1024**3
            mark.unlink()
            after = server.offer(linear_broadcast, plan=plan(), task_id="after")
            await server.until(lambda: after.task_id in server.updates)

    run(body)


def test_the_idle_training_process_is_ended(options, daemon, linear_broadcast):
    async def body():
        server = await FakeServer().start()
        server.offer(linear_broadcast, plan=plan())
        async with daemon(options(server, idle_seconds=0.05)) as desk:
            await server.until(lambda: server.updates)
            await server.until(lambda: desk.runner.pid is None)

    run(body)


def test_a_heartbeat_that_says_closed_ends_stale_training(
    options, daemon, linear_broadcast, tmp_path
):
    async def body():
        server, mark = await FakeServer().start(), tmp_path / "mark"
        mark.write_text("hang")
        stale = server.offer(linear_broadcast, plan=plan())
        other = server.offer(
            linear_broadcast, plan=plan(), task_id="other", run_id="run-2", run_name="older",
            kind=pb.TASK_KIND_FINISH,
        )  # fmt: skip
        server.is_closed = lambda task_id: task_id == stale.task_id and not mark.exists()
        hanging = options(server, data=f"x?mark={mark}")
        async with daemon(hanging, heartbeat=0.05) as desk:
            await server.until(lambda: ended(server, other))
            await server.until(lambda: not list((desk.state.root / "outbox").iterdir()))
        assert [report.task_id for report in server.reports] == ["other"]
        assert server.reports[0].WhichOneof("outcome") == "result"
        assert not server.updates
        assert any(request.working_on for request in server.check_ins)

    run(body)


def test_a_kept_update_is_sent_before_anything_else(options, daemon):
    async def body():
        server, content = await FakeServer().start(), random_bytes(300_000)
        settings = options(server)
        (settings.state / "outbox").mkdir(parents=True)
        put_update(Outbox(settings.state / "outbox"), content, "task-before")
        async with daemon(settings):
            await server.until(lambda: len(server.check_ins) > 1)
        assert server.updates["task-before"] == content
        assert server.check_ins[0].working_on == "task-before"
        assert server.check_ins[1].working_on == ""

    run(body)


def test_a_kept_update_that_cannot_be_sent_is_given_up_and_told(options, daemon, monkeypatch):
    async def crash(*_):
        raise ValueError("nobody foresaw this")

    async def body():
        server = await FakeServer().start()
        settings = options(server)
        (settings.state / "outbox").mkdir(parents=True)
        put_update(Outbox(settings.state / "outbox"), random_bytes(2000), "task-before")
        monkeypatch.setattr("fedclient.desk.upload", crash)
        async with daemon(settings):
            await server.until(lambda: len(server.check_ins) > 1)
        assert [report.failure.code for report in server.reports] == ["crash"]
        assert not list((settings.state / "outbox").iterdir())

    run(body)


def test_a_task_whose_update_is_kept_is_not_trained_again(options, daemon):
    async def body():
        server, content = await FakeServer().start(), random_bytes(5000)
        async with daemon(options(server)) as desk:
            put_update(desk.outbox, content, "task-1")
            server.offer(task_id="task-1")
            await server.until(lambda: server.updates)
            assert desk.runner.pid is None

    run(body)


def test_the_daemon_waits_for_a_server_that_restarts(options, daemon):
    async def body():
        server = await FakeServer().start()
        async with daemon(options(server)):
            await server.until(lambda: server.check_ins)
            await server.stop()
            seen = len(server.check_ins)
            await server.start()
            await server.until(lambda: len(server.check_ins) > seen)
            task = server.offer(workload="speech")
            await server.until(lambda: ended(server, task))

    run(body)


@pytest.mark.parametrize(
    ("said", "waits"), [(math.inf, LONGEST_PAUSE), (math.nan, 0.05), (-5.0, 0.05), (0.5, 0.5)]
)
def test_a_server_cannot_send_a_client_away_for_ever(options, desk, said, waits):
    async def body():
        slept = []

        async def sleep(seconds):
            slept.append(seconds)
            await asyncio.sleep(0.01)

        server = await FakeServer(hold=said).start()
        async with desk(options(server)) as made:
            made = replace(made, peer=replace(made.peer, sleep=sleep))
            running = asyncio.create_task(Daemon(made).run())
            await server.until(lambda: slept)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert slept[0] == waits

    run(body)


def test_data_that_are_not_there_are_told_at_the_start(tmp_path):
    there = tmp_path / "there.csv"
    there.write_text("1,2\n")
    with capture_logs() as said:
        for text in (str(there), "synthetic", "synthetic?client=2.5", f"{there}?classes=4"):
            warn_of_missing_data(text)
        assert said == []
        warn_of_missing_data("nofile.csv?classes=4")
    assert [(entry["event"], entry["path"]) for entry in said] == [
        ("data_missing", str(Path("nofile.csv").absolute()))
    ]
