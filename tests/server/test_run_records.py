"""What a run's record says of its clients and its end."""

from __future__ import annotations

from bench import Bench, moved
from test_engine import finish_round, started


def test_the_tenth_attempt_is_newer_than_the_ninth(bench: Bench) -> None:
    run_id, names = started(bench, extra_clients="minimum = 2", sections="[round]\nretries = 100\n")
    for _ in range(10):
        task = bench.task("c0")
        bench.desk.report_failure("c0", task.task_id, "storage", "full", permanent=False)
        bench.send("c1", moved(bench.broadcast(bench.task("c1")), 1.0))
        bench.settle()
    assert bench.record(run_id)["current"]["attempt"] == 10
    finish_round(bench, names)
    for client in bench.record(run_id)["clients"]:
        assert client["metrics"] == {"train": {"round": 1, "loss": 1.0}}


def test_a_run_that_was_extended_is_finished_when_its_new_end_is_reported(bench: Bench) -> None:
    run_id, names = started(bench, rounds=1)
    finish_round(bench, names)

    def said() -> tuple[int, int, list[bool]]:
        record = bench.record(run_id)
        finished = [client["finished"] for client in record["clients"]]
        return record["finish_done"], record["finish_waiting"], finished

    def report() -> None:
        for name in names:
            bench.desk.report_result(name, bench.task(name).task_id, {"accuracy": 0.5}, 1.0)

    report()
    assert said() == (2, 0, [True, True])
    bench.runs.extend(run_id, 1)
    bench.settle()
    assert said() == (0, 0, [False, False])
    finish_round(bench, names)
    assert said() == (0, 2, [False, False])
    report()
    assert said() == (2, 0, [True, True])
