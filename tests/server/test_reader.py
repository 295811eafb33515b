"""Whoever looks at a run while it moves on sees it as it was after one commit."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

from bench import Bench, runfile
from sqlalchemy import event
from test_engine import finish_round, started

from fedserver.dashboard.series import client_series
from fedserver.rounds.jobs import OpenJob
from fedserver.rounds.reader import Reader
from fedserver.rounds.view import run_record
from fedserver.tracking.closed import Untold, closed_rounds, from_now_on


def asked(bench: Bench, moves: Callable[[], None], *question: Any) -> dict[str, Any]:
    """Return the reader's answer to a question after whose every statement the record moves on."""

    async def body() -> dict[str, Any]:
        reader = Reader(bench.root, bench.engine)

        @event.listens_for(reader._sql, "after_cursor_execute")
        def between(connection: object, cursor: object, statement: str, *rest: object) -> None:
            if not statement.startswith("BEGIN"):
                moves()

        try:
            found: dict[str, Any] = await reader(*question)
            # Nothing is held once the answer is there: the log can be emptied and cut.
            with sqlite3.connect(bench.root / "motley.sqlite") as other:
                assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
            return found
        finally:
            reader.close()

    return asyncio.run(body())


def test_an_answer_is_of_one_state_while_rounds_close(bench: Bench) -> None:
    run_id, names = started(bench, 2, rounds=20)
    finish_round(bench, names)

    def moves() -> None:
        if bench.record(run_id)["status"] == "running":
            finish_round(bench, names)

    series = asked(bench, moves, client_series, run_id, "train", "loss")
    assert series["round"] == [1]
    record = asked(bench, moves, run_record, run_id)
    assert record["round"] == len(record["history"])
    for client in record["clients"]:
        assert client["counted"] == record["round"]
    assert record["current"] is None or record["current"]["round"] == record["round"] + 1


def test_an_answer_is_of_one_state_while_a_run_starts(bench: Bench) -> None:
    bench.arrive("c0")
    run_id = bench.submit(runfile(clients=2))

    def moves() -> None:
        bench.arrive("c1")
        bench.settle()

    record = asked(bench, moves, run_record, run_id)
    assert (record["status"], record["clients"]) == ("waiting", [])
    assert bench.record(run_id)["status"] == "running"


def test_trackers_are_told_of_a_round_that_was_overtaken(bench: Bench) -> None:
    untold, told = from_now_on(bench.engine), []

    def tell() -> None:
        for closed in closed_rounds(bench.engine, untold):
            told.append(closed.run_name)
            untold.ids.discard(closed.id)

    def settle() -> None:
        """Go as far as can be, but for the opening of the first run's round, once."""
        while (job := bench.engine.tick()) is not None:
            if isinstance(job, OpenJob) and job.context.id == paused and not failed:
                failed.append(job)
                bench.engine.failed(job, FileNotFoundError("a payload"))
            else:
                bench.engine.apply(job, job.run(bench.payloads))
        tell()

    bench.arrive("c0", "c1")
    failed: list[OpenJob] = []
    paused = bench.runs.submit(runfile(rounds=1), "test")
    bench.runs.submit(runfile(rounds=1).replace('"test"', '"other"'), "test")
    settle()
    bench.clock.now += 10
    finish_round(bench, ["c0", "c1"])
    tell()
    assert told == ["other"]
    bench.runs.resume(paused)
    for name in ("c0", "c1"):
        bench.desk.report_result(name, bench.task(name).task_id, {}, 0.0)
    settle()
    bench.clock.now += 10
    finish_round(bench, ["c0", "c1"])
    tell()
    tell()
    assert told == ["other", "test"]
    everything = closed_rounds(bench.engine, Untold())
    assert [closed.run_name for closed in everything] == told
