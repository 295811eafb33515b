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
from fedserver.rounds.reader import Reader
from fedserver.rounds.view import run_record


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
