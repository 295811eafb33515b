"""A run's history as columns: what charts need, in a fraction of the record's bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, select

from fedserver.rounds.engine import Engine
from fedserver.storage.schema import rounds, tasks
from motley.errors import MotleyError

DIGITS = 5
"""Significant digits of a figure that is drawn."""
_ENDED = rounds.c.status.in_(("closed", "abandoned"))


def round_columns(engine: Engine, run: str, after_round_id: int = 0) -> dict[str, Any]:
    """Return the rounds that ended after record `after_round_id`, each field a list over them.

    `dense_bytes` is the global model in full precision, once; `uploads` and `downloads` count
    the transfers of it that a round took, so that the product is what full precision would take.
    """
    with engine.database.connect() as tx:
        row = engine.find(tx, run)
        mine = rounds.c.run == row.id, rounds.c.id > after_round_id, _ENDED
        found = tx.execute(select(rounds).where(*mine).order_by(rounds.c.id)).all()
        sums = _sums(tx, mine)
        dense = _dense_bytes(engine, tx, row.id)
    columns: dict[str, list[Any]] = {
        name: [getattr(r, name) for r in found]
        for name in ("id", "round", "kind", "attempt", "status", "reason", "opened", "metrics")
    }
    for phase in ("open", "collect", "fold"):
        columns[phase] = [_short(r.phases.get(phase, 0.0)) for r in found]
    for name in ("updates", "uploads", "downloads", "bytes_up", "bytes_down", "train_slowest"):
        columns[name] = [_short(sums.get(r.id, {}).get(name, 0)) for r in found]
    return {"run": row.id, "dense_bytes": dense, "rounds": columns}


def _sums(tx: Connection, wanted: Sequence[ColumnElement[bool]]) -> dict[int, dict[str, Any]]:
    """Return of each round what its tasks add up to."""
    t = tasks.c
    query = (
        select(
            t.round_id,
            _count(t.status.in_(("counted", "done"))).label("updates"),
            _count(t.bytes_up > 0).label("uploads"),
            _count(t.bytes_down > 0).label("downloads"),
            func.sum(t.bytes_up).label("bytes_up"),
            func.sum(t.bytes_down).label("bytes_down"),
            func.max(t.seconds).label("train_slowest"),
        )
        .join_from(rounds, tasks, t.round_id == rounds.c.id)
        .where(*wanted)
        .group_by(rounds.c.id)
    )
    return {row.round_id: dict(row._mapping) for row in tx.execute(query)}


def _count(condition: ColumnElement[bool]) -> Any:
    return func.sum(case((condition, 1), else_=0))


def _dense_bytes(engine: Engine, tx: Connection, run_id: str) -> int:
    """Return the bytes of the global model unpacked; 0 while it is not known."""
    try:
        context = engine.context(tx, run_id)
    except MotleyError:
        return 0
    if context.model is None:
        return 0
    return sum(info.nbytes for info in context.global_table)


def client_series(
    engine: Engine, run: str, kind: str, metric: str, after_round_id: int = 0
) -> dict[str, Any]:
    """Return one metric of closed rounds of a kind, by client: a list over rounds, with nulls.

    Args:
        engine: over the record.
        run: id, beginning of an id, or name.
        kind: `train` or `evaluate`.
        metric: its name in the tasks' metrics, e.g. `accuracy`.
        after_round_id: only rounds recorded after this one.
    """
    with engine.database.connect() as tx:
        row = engine.find(tx, run)
        mine = (
            rounds.c.run == row.id,
            rounds.c.kind == kind,
            rounds.c.status == "closed",
            rounds.c.id > after_round_id,
        )
        chosen = select(rounds.c.id, rounds.c.round).where(*mine).order_by(rounds.c.id)
        found = tx.execute(chosen).all()
        place = {r.id: n for n, r in enumerate(found)}
        clients: dict[str, list[float | None]] = {}
        for client, round_id, number in _values(tx, metric, mine):
            if number is not None:
                column = clients.setdefault(client, [None] * len(found))
                column[place[round_id]] = _short(number)
    return {
        "run": row.id,
        "kind": kind,
        "metric": metric,
        "id": [r.id for r in found],
        "round": [r.round for r in found],
        "clients": {name: clients[name] for name in sorted(clients)},
    }


def _values(
    tx: Connection, metric: str, wanted: Sequence[ColumnElement[bool]]
) -> Iterator[tuple[str, int, float | None]]:
    """Yield client, round and value of a metric of the tasks that counted."""
    query = (
        select(tasks.c.client, tasks.c.round_id, tasks.c.metrics[metric].as_float())
        .join_from(rounds, tasks, tasks.c.round_id == rounds.c.id)
        .where(*wanted, tasks.c.status.in_(("counted", "done")))
    )
    # By hundred thousands: tuples of the driver, not rows of the library.
    cursor = tx.execute(query).cursor
    yield from cursor.fetchall() if cursor else ()


def _short(value: Any) -> Any:
    """Return a number with few digits; counts stay whole."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
