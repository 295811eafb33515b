"""Who is asked again when a round is tried again."""

from __future__ import annotations

from bench import Bench, moved
from test_engine import started


def test_who_was_interrupted_by_a_stop_is_asked_again(bench: Bench) -> None:
    run_id, names = started(bench, 4, extra_clients="count = 3")
    bench.runs.stop(run_id)
    bench.settle()
    bench.arrive(*names)
    bench.runs.resume(run_id)
    bench.settle()
    current = bench.record(run_id)["current"]
    assert (current["attempt"], current["goal"], len(current["clients"])) == (1, 3, 3)


def test_who_was_slow_is_left_out_and_who_sent_in_time_is_not(bench: Bench) -> None:
    run_id, names = started(
        bench,
        3,
        extra_clients="count = 2\nminimum = 2",
        sections="[round]\ndeadline_seconds = 60\n",
    )
    prompt, slow = sorted(bench.record(run_id)["current"]["clients"])
    bench.send(prompt, moved(bench.broadcast(bench.task(prompt)), 0.5))
    bench.clock.now += 61
    bench.arrive(*names)
    bench.settle()
    record = bench.record(run_id)
    assert {c["status"] for c in record["history"][0]["clients"].values()} == {"late"}
    assert sorted(record["current"]["clients"]) == sorted({*names} - {slow})
