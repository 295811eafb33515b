"""Which run an operator means."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select

from fedserver.errors import UnknownRunError
from fedserver.storage.schema import runs
from motley.errors import did_you_mean

MOST_NAMED = 5
SUGGESTED = 100
"""Newest runs among whose names the one that was meant is looked for."""


def find_run(tx: Connection, run: str) -> Any:
    """Return the row of a run by id, name (the newest), or what only its id begins with.

    Raises:
        UnknownRunError: no run, or more than one.
    """
    newest = select(runs).order_by(runs.c.sequence.desc())
    for condition in (runs.c.id == run, runs.c.name == run):
        row = tx.execute(newest.where(condition)).first()
        if run and row is not None:
            return row
    begun = runs.c.id.startswith(run, autoescape=True)
    rows = tx.execute(newest.where(begun)).all() if run else []
    if len(rows) == 1:
        return rows[0]
    if rows:
        fitting = ", ".join(f"{row.id} ({row.name})" for row in rows[:MOST_NAMED])
        more = f", and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
        raise UnknownRunError(
            f"{run!r} is the beginning of {len(rows)} ids: {fitting}{more}; give more of the id"
        )
    names = tx.scalars(newest.with_only_columns(runs.c.name).limit(SUGGESTED))
    known = tuple(dict.fromkeys(names))
    raise UnknownRunError(
        f"no run has the id or name {run!r}; the newest are "
        f"{', '.join(known[:MOST_NAMED]) or 'none yet'}{did_you_mean(run, known)}"
    )
