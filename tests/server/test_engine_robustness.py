"""What must never take the server, another run, or a client's good name with it."""

from __future__ import annotations

import numpy as np
import pytest
from bench import Bench, moved, runfile
from sqlalchemy import update
from test_engine import finish_round, started

from fedserver.errors import AggregationError
from fedserver.rounds.exclusion import shut_out
from fedserver.rounds.jobs import FoldJob, HeldOutJob, OpenJob, PrepareJob
from fedserver.rounds.presence import PRESENT_SECONDS
from fedserver.rounds.standing import Standing
from fedserver.storage.schema import clients
from motley.task import TaskKind


def test_init_may_name_an_older_run_of_the_same_name(bench: Bench) -> None:
    first, names = started(bench, 2, rounds=1)
    finish_round(bench, names)
    text = runfile(rounds=1).replace('name = "test"', 'name = "test"\ninit = "run:test"')
    second = bench.runs.submit(text, "test")
    bench.restart()
    job = bench.engine.tick()
    assert isinstance(job, PrepareJob)
    assert job.context.id == second
    assert job.run(bench.payloads)["sha256"] == bench.record(first)["state"]


def test_a_metric_may_have_any_name(bench: Bench) -> None:
    run_id, names = started(bench, 2, rounds=1, sections="[evaluate]\nevery = 1\n")
    finish_round(bench, names)
    for name in names:
        task = bench.task(name)
        bench.desk.report_result(name, task.task_id, {"round": 3.0, "event": 1.0}, 0.1)
    bench.settle()
    assert bench.record(run_id)["history"][-1]["metrics"] == {"round": 3.0, "event": 1.0}


def test_a_run_that_breaks_is_put_aside_and_the_next_one_goes_on(bench: Bench) -> None:
    run_id, _ = started(bench, 2)
    with bench.engine.database.begin() as tx:
        tx.exec_driver_sql("UPDATE runs SET runfile = 'not toml ='")
    bench.restart()
    bench.arrive("c0", "c1")
    bench.settle()
    with bench.engine.database.connect() as tx:
        row = bench.engine.find(tx, run_id)
    assert row.status == "paused"
    assert "internal error" in row.reason
    assert bench.record(run_id)["status"] == "paused", "and can be shown"
    assert bench.next_task("c0") is None, "its tasks are not given out"
    assert bench.engine.seconds_to_next_deadline() is None
    other = bench.submit(runfile())
    with bench.engine.database.connect() as tx:
        assert bench.engine.find(tx, other).status == "running"


def test_after_a_restart_a_round_waits_for_those_who_are_on_their_way(bench: Bench) -> None:
    run_id, names = started(bench, 3)
    for name in names:
        bench.send(name, moved(bench.broadcast(bench.task(name)), 0.1))
    bench.restart()  # killed before the fold
    bench.arrive("c1")
    bench.settle()
    record = bench.record(run_id)
    assert record["round"] == 1
    assert record["current"] is None
    assert "1 of 3 clients are back after the restart" in record["reason"]
    bench.arrive("c0", "c2")
    bench.settle()
    assert sorted(bench.record(run_id)["current"]["clients"]) == names


def test_but_not_for_ever(bench: Bench) -> None:
    run_id, names = started(bench, 3)
    for name in names:
        bench.send(name, moved(bench.broadcast(bench.task(name)), 0.1))
    bench.restart()
    bench.clock.now += PRESENT_SECONDS + 1
    bench.arrive("c1")
    bench.settle()
    assert list(bench.record(run_id)["current"]["clients"]) == ["c1"]


def test_a_broken_connection_frees_the_name_but_keeps_the_client_in(bench: Bench) -> None:
    run_id, names = started(bench, 2)
    arrival = bench.presence.get("c1")
    assert arrival is not None
    bench.presence.release(arrival)
    finish_round(bench, names)
    assert sorted(bench.record(run_id)["current"]["clients"]) == names
    bench.arrive("c1", session="another device")


def test_a_stale_handler_does_not_release_a_client_that_is_back(bench: Bench) -> None:
    bench.arrive("c0")
    old = bench.presence.get("c0")
    bench.arrive("c0")
    assert old is not None
    newer = bench.presence.get("c0")
    assert newer is not None
    bench.presence.arrive(type(newer)(**{**vars(newer), "poll": old.poll + 1}))
    bench.presence.release(old)
    now = bench.presence.get("c0")
    assert now is not None
    assert not now.free


def test_a_held_out_set_that_fails_does_not_keep_a_run_from_finishing(bench: Bench) -> None:
    sections = '[evaluate]\nevery = 1\nheld_out = "digits?nonsense=1"\n'
    run_id, names = started(bench, 2, rounds=1, sections=sections)
    finish_round(bench, names)
    for name in names:
        bench.desk.report_result(name, bench.task(name).task_id, {"accuracy": 0.5}, 0.1)
    job = bench.engine.tick()
    assert isinstance(job, HeldOutJob)
    bench.engine.failed(job, RuntimeError("no such data"))
    bench.settle()
    record = bench.record(run_id)
    assert (record["status"], record["finish_waiting"]) == ("finished", 2)
    evaluation = record["history"][-1]
    assert evaluation["metrics"] == {"accuracy": 0.5}
    assert evaluation["reason"] == "held-out set: no such data"


def test_a_held_out_result_that_comes_after_stop_changes_nothing(bench: Bench) -> None:
    sections = '[evaluate]\nevery = 1\nheld_out = "digits"\n'
    run_id, names = started(bench, 2, rounds=1, sections=sections)
    finish_round(bench, names)
    for name in names:
        bench.desk.report_result(name, bench.task(name).task_id, {"accuracy": 0.5}, 0.1)
    job = bench.engine.tick()
    assert isinstance(job, HeldOutJob)
    bench.runs.stop(run_id)
    bench.engine.apply(job, {"held_out_accuracy": 1.0})
    assert bench.record(run_id)["history"][-1]["status"] == "abandoned"
    bench.runs.resume(run_id)
    assert bench.engine.tick() is not None
    assert bench.record(run_id)["status"] == "running"


def test_a_job_that_fails_after_stop_leaves_the_run_stopped(bench: Bench) -> None:
    run_id, names = started(bench, 2)
    for name in names:
        bench.send(name, moved(bench.broadcast(bench.task(name)), 0.1))
    job = bench.engine.tick()
    assert isinstance(job, FoldJob)
    bench.runs.stop(run_id)
    bench.engine.failed(job, RuntimeError("disk"))
    assert bench.record(run_id)["status"] == "stopped"


def test_updates_that_overflow_pause_the_run_and_resume_tries_again(bench: Bench) -> None:
    run_id, names = started(bench, 2)
    before = bench.record(run_id)["state"]
    huge = bench.broadcast(bench.task("c0"))
    huge["fc1.bias"][:] = np.float32(3e38)
    for name in names:
        bench.send(name, huge)
    job = bench.engine.tick()
    assert isinstance(job, FoldJob)
    with pytest.raises(AggregationError, match=r"fc1\.bias is not finite.*c0, c1") as caught:
        job.run(bench.payloads)
    bench.engine.failed(job, caught.value)
    record = bench.record(run_id)
    assert (record["status"], record["state"]) == ("paused", before)
    bench.runs.resume(run_id)
    bench.settle()
    finish_round(bench, names)
    assert bench.record(run_id)["round"] == 1


def test_too_many_excluded_clients_pause_with_their_reasons(bench: Bench) -> None:
    run_id, names = started(bench, 2, extra_clients="minimum = 2")
    task = bench.task("c0")
    bench.desk.report_failure("c0", task.task_id, "data", "no such folder", permanent=True)
    bench.send("c1", moved(bench.broadcast(bench.task("c1")), 0.1))
    bench.settle()
    record = bench.record(run_id)
    assert record["status"] == "paused"
    assert "needs 2 clients" in record["reason"]
    assert "c0: data: no such folder" in record["reason"]
    bench.runs.resume(run_id)
    bench.settle()
    finish_round(bench, names)
    assert bench.record(run_id)["round"] == 1


def test_a_client_that_no_longer_fits_is_not_selected(bench: Bench) -> None:
    run_id, names = started(bench, 2)
    newer = bench.presence.get("c1")
    assert newer is not None
    capabilities = type(newer.capabilities)(
        **{**vars(newer.capabilities), "algorithms": {"fedavg": 2}}
    )
    bench.presence.arrive(type(newer)(**{**vars(newer), "capabilities": capabilities}))
    bench.clock.now += PRESENT_SECONDS + 1
    bench.arrive("c0")
    bench.presence.arrive(
        type(newer)(**{**vars(newer), "capabilities": capabilities, "seen": bench.clock.now})
    )
    finish_round(bench, names)
    assert list(bench.record(run_id)["current"]["clients"]) == ["c0"]


def test_a_finish_task_that_fails_is_offered_again(bench: Bench) -> None:
    _, names = started(bench, 2, rounds=1)
    finish_round(bench, names)
    for _ in range(2):
        task = bench.task("c0")
        assert task.kind is TaskKind.FINISH
        bench.desk.report_failure("c0", task.task_id, "out_of_memory", "4 GB", permanent=False)
    task = bench.task("c0")
    assert not bench.desk.report_result("c0", task.task_id, {"accuracy": 0.5}, 1.0)


def test_a_failure_report_that_comes_again_is_no_further_try(bench: Bench) -> None:
    _, names = started(bench, 2, rounds=1)
    finish_round(bench, names)
    task = bench.task("c0")
    report = ("c0", task.task_id, "storage", "the disk is full")
    assert not bench.desk.report_failure(*report, permanent=False)
    for _ in range(2):
        assert bench.desk.report_failure(*report, permanent=False)
    bench.restart()
    bench.arrive(*names)
    assert bench.desk.report_failure(*report, permanent=False)
    assert bench.task("c0").task_id == task.task_id


def test_work_on_a_closed_task_is_known_to_be_over(bench: Bench) -> None:
    run_id, _ = started(bench, 2)
    task = bench.task("c0")
    assert bench.desk.is_open("c0", task.task_id)
    assert not bench.desk.is_open("c1", task.task_id)
    bench.runs.stop(run_id)
    assert not bench.desk.is_open("c0", task.task_id)


def test_a_finish_task_that_cannot_be_read_fails_alone(bench: Bench) -> None:
    _, names = started(bench, 2, rounds=1)
    finish_round(bench, names)
    with bench.engine.database.begin() as tx:
        tx.exec_driver_sql("UPDATE runs SET runfile = 'not toml ='")
    bench.restart()
    bench.arrive(*names)
    assert bench.next_task("c0") is None
    bench.submit(runfile())
    assert bench.task("c0").kind is TaskKind.TRAIN


def test_a_late_failure_report_revives_no_finish_task(bench: Bench) -> None:
    run_id, names = started(bench, 2, rounds=1)
    finish_round(bench, names)
    finish = bench.task("c0")
    bench.runs.extend(run_id, 1)
    assert bench.desk.report_failure("c0", finish.task_id, "crash", "x", permanent=False)
    bench.settle()
    assert bench.task("c0").kind is TaskKind.TRAIN


@pytest.mark.parametrize("how", ["shut out", "put aside"])
def test_a_client_that_leaves_while_a_round_is_encoded_is_not_waited_for(
    bench: Bench, how: str
) -> None:
    bench.arrive("c0", "c1")
    run_id = bench.runs.submit(runfile(clients=2, extra_clients="minimum = 1"), "test")
    job = bench.engine.tick()
    while not isinstance(job, OpenJob):
        assert job is not None
        bench.engine.apply(job, job.run(bench.payloads))
        job = bench.engine.tick()
    if how == "shut out":
        with bench.engine.transition() as tx:
            shut_out(tx, "c1", "stolen", bench.clock.wall())
    else:
        Standing(bench.engine).put_aside("c1", "session-c1", 600.0, "it broke the protocol")
    bench.engine.apply(job, job.run(bench.payloads))
    assert bench.next_task("c1") is None
    finish_round(bench, ["c0"])
    record = bench.record(run_id)
    assert record["round"] == 1
    assert record["history"][0]["clients"]["c1"]["status"] == "failed"


def test_a_run_freezes_no_client_that_was_just_shut_out(bench: Bench) -> None:
    bench.arrive("c0", "c1")
    run_id = bench.runs.submit(runfile(clients=2), "test")
    with bench.engine.transition() as tx:
        tx.execute(update(clients).where(clients.c.name == "c1").values(revoked="stolen"))
        shut_out(tx, "c1", "stolen", bench.clock.wall())
    bench.settle()
    record = bench.record(run_id)
    assert (record["status"], record["clients"]) == ("waiting", [])
    bench.arrive("c2")
    bench.settle()
    record = bench.record(run_id)
    assert sorted(record["current"]["clients"]) == ["c0", "c2"]
