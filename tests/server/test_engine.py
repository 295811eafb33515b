"""The round engine: selection, closing, retries, restarts; real database, no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bench import Bench, moved, runfile

from fedserver.errors import (
    DataDirectoryError,
    NameInUseError,
    ProtocolError,
    UnknownTaskError,
)
from fedserver.rounds.tasks import Receipt
from fedserver.storage.database import lock_directory, open_database
from motley.errors import UpdateError
from motley.task import TaskKind


def started(bench: Bench, clients: int = 2, **options: object) -> tuple[str, list[str]]:
    """Start a run with clients c0, c1, ..."""
    names = [f"c{index}" for index in range(clients)]
    bench.arrive(*names)
    return bench.submit(runfile(clients=clients, **options)), names


def finish_round(bench: Bench, names: list[str], by: float = 0.1) -> None:
    for name in names:
        task = bench.task(name)
        assert task.kind is TaskKind.TRAIN
        bench.send(name, moved(bench.broadcast(task), by), task=task)
    bench.settle()


def test_full_precision_round_is_the_weighted_mean(bench: Bench) -> None:
    run_id, _ = started(bench)
    before = bench.broadcast(bench.task("c0"))
    first, second = moved(before, 0.5), moved(before, -0.25)
    # Order of arrival does not matter: c1 sends first.
    bench.send("c1", second, samples=30)
    bench.send("c0", first, samples=10)
    bench.settle()
    after = bench.state(run_id)
    for name in before:
        np.testing.assert_allclose(
            after[name], 0.25 * first[name] + 0.75 * second[name], rtol=1e-6, atol=1e-7
        )
    record = bench.record(run_id)
    assert record["round"] == 1
    assert record["history"][0]["clients"]["c1"]["status"] == "counted"


def test_quantized_deltas_go_onto_the_full_precision_state(bench: Bench) -> None:
    run_id, names = started(bench, sections="[wire]\nup_bits = 8\ndown_bits = 4\n")
    initial = bench.state(run_id)
    task = bench.task("c0")
    received = bench.broadcast(task)
    assert any(not np.array_equal(received[n], initial[n]) for n in initial), "down is quantized"
    for name in names:
        # The same constant delta from everyone survives quantization exactly.
        bench.send(name, moved(bench.broadcast(bench.task(name)), 0.125))
    bench.settle()
    after = bench.state(run_id)
    for name in initial:
        np.testing.assert_allclose(after[name], initial[name] + 0.125, atol=2e-3)


def test_a_run_finishes_and_everyone_gets_a_finish_task(bench: Bench) -> None:
    run_id, names = started(bench)
    finish_round(bench, names)
    finish_round(bench, names)
    record = bench.record(run_id)
    assert (record["status"], record["finish_waiting"]) == ("finished", 2)
    assert bench.task("c0").kind is TaskKind.FINISH
    assert not bench.desk.report_result("c0", bench.task("c0").task_id, {"accuracy": 0.5}, 1.0)
    assert bench.next_task("c0") is None
    assert bench.record(run_id)["finish_done"] == 1


def test_surplus_updates_do_not_count(bench: Bench) -> None:
    run_id, names = started(bench, 3, extra_clients="count = 2\nover_select = 1.5")
    values = moved(bench.broadcast(bench.task("c0")), 1.0)
    tasks = {name: bench.task(name) for name in names}
    assert bench.send("c0", values) is Receipt.ACCEPTED
    assert bench.send("c2", values) is Receipt.ACCEPTED
    assert bench.send("c1", moved(values, 9.0), task=tasks["c1"]) is Receipt.SURPLUS
    bench.settle()
    history = bench.record(run_id)["history"][0]
    assert {n: c["status"] for n, c in history["clients"].items()} == {
        "c0": "counted",
        "c1": "surplus",
        "c2": "counted",
    }
    # The surplus client's next task starts from its last counted state: none yet.
    nexts = {name: bench.next_task(name) for name in names}
    assert all(task.base_version == "" for n, task in nexts.items() if n == "c1" and task)
    counted = [task for n, task in nexts.items() if n != "c1" and task]
    assert counted
    assert all(task.base_version == tasks[task.client].task_id for task in counted)


def test_deadline_closes_with_the_minimum_and_late_updates_are_late(bench: Bench) -> None:
    run_id, names = started(
        bench, 3, extra_clients="minimum = 2", sections="[round]\ndeadline_seconds = 60\n"
    )
    late = bench.task("c2")
    values = bench.broadcast(late)
    for name in ("c0", "c1"):
        bench.send(name, moved(values, 1.0))
    bench.settle()
    assert bench.record(run_id)["round"] == 0, "a third client may still come"
    bench.clock.now += 61
    bench.arrive(*names)
    bench.settle()
    assert bench.record(run_id)["round"] == 1
    assert bench.send("c2", moved(values, 5.0), task=late) is Receipt.LATE


def test_below_the_minimum_is_retried_then_paused_with_the_reason(bench: Bench) -> None:
    run_id, names = started(
        bench,
        2,
        extra_clients="minimum = 2",
        sections="[round]\ndeadline_seconds = 60\nretries = 1\n",
    )
    for attempt in range(2):
        assert bench.task("c0").attempt == attempt
        bench.send("c0", moved(bench.broadcast(bench.task("c0")), 1.0))
        bench.clock.now += 61
        bench.arrive(*names)
        bench.settle()
    record = bench.record(run_id)
    assert record["status"] == "paused"
    assert "round 1: 1 of at least 2 updates came before the deadline" in record["reason"]
    assert record["round"] == 0
    bench.runs.resume(run_id)
    bench.settle()
    assert bench.task("c0").attempt == 2
    assert bench.task("c0").base_version == "", "abandoned rounds count nothing"
    finish_round(bench, names)
    assert bench.record(run_id)["round"] == 1


def test_a_run_that_all_clients_fail_says_so_with_three_of_their_reasons(bench: Bench) -> None:
    run_id, names = started(bench, 5, sections="[round]\nretries = 0\n")
    for name in names:
        said = f"the loss of {name} became nan"
        task = bench.task(name)
        bench.desk.report_failure(name, task.task_id, "training", said, permanent=False)
    bench.settle()
    record = bench.record(run_id)
    assert record["status"] == "paused"
    assert record["reason"].count("became nan") == 3
    assert record["reason"].endswith("; and 2 more: `fedserver show --json` has all")
    told = record["history"][-1]["clients"]
    assert all(f"the loss of {name} became nan" in told[name]["reason"] for name in names)


def test_all_failed_closes_at_once_and_permanent_failures_exclude(bench: Bench) -> None:
    run_id, _ = started(bench, 2)
    task = bench.task("c0")
    bench.desk.report_failure("c0", task.task_id, "workload", "not mapped", permanent=True)
    bench.send("c1", moved(bench.broadcast(bench.task("c1")), 1.0))
    bench.settle()
    record = bench.record(run_id)
    assert record["round"] == 1, "nobody is left to wait for"
    assert record["clients"][0]["reason"] == "workload: not mapped"
    assert bench.next_task("c0") is None


def test_a_restart_takes_up_the_open_round_with_the_time_left(bench: Bench) -> None:
    run_id, names = started(bench, 2, sections="[round]\ndeadline_seconds = 100\n")
    first = bench.task("c0")
    bench.send("c0", moved(bench.broadcast(first), 1.0))
    bench.clock.now += 40
    bench.engine.save_time_left()
    bench.clock.now += 10_000  # down for hours: deadlines count up-time
    bench.restart()
    bench.arrive(*names)
    bench.settle()
    assert bench.engine.seconds_to_next_deadline() == pytest.approx(60)
    assert bench.send("c0", moved(bench.broadcast(first), 1.0), task=first) is Receipt.ACCEPTED
    finish_round(bench, ["c1"])
    assert bench.record(run_id)["round"] == 1


def test_a_crash_between_closing_and_folding_folds_again(bench: Bench) -> None:
    run_id, names = started(bench, 2)
    for name in names:
        bench.send(name, moved(bench.broadcast(bench.task(name)), 1.0))
    job = bench.engine.tick()
    assert job is not None
    job.run(bench.payloads)  # the fold is done, but the server dies before it is on record
    bench.restart()
    bench.arrive(*names)
    bench.settle()
    assert bench.record(run_id)["round"] == 1
    assert bench.folds[-1].updates[0].client == "c0"


def test_same_update_twice_counts_once_and_another_is_refused(bench: Bench) -> None:
    run_id, _ = started(bench)
    task = bench.task("c0")
    values = moved(bench.broadcast(task), 1.0)
    assert bench.send("c0", values, task=task) is Receipt.ACCEPTED
    assert bench.send("c0", values, task=task) is Receipt.ACCEPTED
    with pytest.raises(ProtocolError, match="another one"):
        bench.send("c0", moved(values, 1.0), task=task)
    assert bench.record(run_id)["current"]["arrived"] == 1


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_updates_that_are_not_finite_are_refused_by_name(bench: Bench, poison: float) -> None:
    run_id, _ = started(bench)
    before = bench.record(run_id)["state"]
    values = bench.broadcast(bench.task("c0"))
    values["fc1.weight"].flat[3] = poison
    with pytest.raises(UpdateError, match=r"c0.*fc1\.weight.*not finite"):
        bench.send("c0", values)
    assert bench.record(run_id)["state"] == before


def test_missing_tensors_are_refused(bench: Bench) -> None:
    started(bench)
    values = bench.broadcast(bench.task("c0"))
    del values["fc2.bias"]
    with pytest.raises(UpdateError, match=r"missing: fc2\.bias"):
        bench.send("c0", values)


def test_tasks_of_others_are_unknown(bench: Bench) -> None:
    started(bench)
    task = bench.task("c0")
    with pytest.raises(UnknownTaskError, match="c1"):
        bench.desk.begin_upload("c1", task.task_id, "00" * 32)


def test_a_second_client_of_a_name_is_refused_until_the_first_is_gone(bench: Bench) -> None:
    bench.arrive("c0", session="a")
    with pytest.raises(NameInUseError, match="c0"):
        bench.arrive("c0", session="b")
    bench.arrive("c0", session="a")
    bench.clock.now += 1_000
    bench.arrive("c0", session="b")


def test_evaluation_rounds_report_means_over_clients(bench: Bench) -> None:
    run_id, names = started(bench, 2, rounds=1, sections="[evaluate]\nevery = 1\n")
    finish_round(bench, names)
    for name, accuracy in zip(names, (0.5, 0.7), strict=True):
        task = bench.task(name)
        assert (task.kind, task.subject) == (TaskKind.EVALUATE, "global")
        bench.desk.report_result(name, task.task_id, {"accuracy": accuracy}, 0.1)
    bench.settle()
    record = bench.record(run_id)
    assert record["history"][-1]["metrics"]["accuracy"] == pytest.approx(0.6)
    assert record["status"] == "finished"


def test_sample_counts_are_capped(bench: Bench) -> None:
    run_id, _ = started(bench, 2, extra_clients="max_samples = 20")
    before = bench.broadcast(bench.task("c0"))
    bench.send("c0", moved(before, 1.0), samples=20)
    bench.send("c1", moved(before, -1.0), samples=10**9)
    bench.settle()
    after = bench.state(run_id)
    np.testing.assert_allclose(after["fc1.bias"], before["fc1.bias"], atol=1e-6)


def test_replay_agrees_and_finds_damage(bench: Bench) -> None:
    from fedserver.rounds.replay import plan_replay

    run_id, names = started(bench)
    finish_round(bench, names)
    finish_round(bench, names, by=-0.3)
    replays = plan_replay(bench.engine, run_id)
    assert [r.run(bench.payloads)["agrees"] for r in replays] == [True, True]
    victim = bench.payloads.path(replays[1].job.updates[0].digest)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    outcome = replays[1].run(bench.payloads)
    assert not outcome["agrees"]
    assert "damaged" in outcome["problem"]


def test_data_directory_in_use_is_refused(tmp_path: Path) -> None:
    held = lock_directory(tmp_path)
    with pytest.raises(DataDirectoryError, match="in use"):
        lock_directory(tmp_path)
    held.close()
    lock_directory(tmp_path).close()


def test_a_data_directory_may_be_the_root_of_a_file_system(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    lock_directory(tmp_path).close()
    (tmp_path / "letters").mkdir()
    with pytest.raises(DataDirectoryError, match=r"other things \(letters\)"):
        lock_directory(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "motley.sqlite").write_bytes(b"not a database, but long enough to be read" * 50)
    with pytest.raises(DataDirectoryError, match="not a database"):
        open_database(tmp_path)


def test_held_out_set_on_the_server(bench: Bench) -> None:
    sections = '[evaluate]\nevery = 1\nheld_out = "digits"\n'
    run_id, names = started(bench, 2, rounds=1, sections=sections)
    finish_round(bench, names)
    for name in names:
        bench.desk.report_result(name, bench.task(name).task_id, {"accuracy": 0.5}, 0.1)
    bench.settle()
    metrics = bench.record(run_id)["history"][-1]["metrics"]
    assert metrics["accuracy"] == 0.5
    assert 0.0 <= metrics["held_out_accuracy"] <= 1.0
    assert metrics["held_out_samples"] > 100
