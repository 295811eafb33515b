"""What a tracker is told of a round that closed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import Connection, func, select

from fedserver.rounds.engine import Engine
from fedserver.storage.schema import rounds, runs, tasks


@dataclass(frozen=True, kw_only=True)
class ClosedRound:
    """One closed round."""

    id: int
    """Number of its record."""
    run: str
    run_name: str
    round: int
    closed: float
    """Seconds since 1970."""
    figures: Mapping[str, float]
    """By name: `train/loss`, `evaluate/accuracy`, `seconds/collect`, `bytes/up` and the like."""


class Tracker(Protocol):
    """Where figures go. Called on a thread of its own, one call at a time."""

    def round_closed(self, closed: ClosedRound) -> None:
        """Take one round."""

    def close(self) -> None:
        """Write what is not written yet."""


@dataclass
class Untold:
    """What trackers are yet to be told of.

    Rounds do not close in order of their records: one whose run paused is overtaken by others.
    """

    newest: int = 0
    """Number of the newest record that was looked at."""
    ids: set[int] = field(default_factory=set)
    """Rounds up to there that may close yet, or did."""


def from_now_on(engine: Engine) -> Untold:
    """Return what is untold to one who wants to hear of no round that has closed already."""
    untold = Untold()
    with engine.database.connect() as tx:
        _look(tx, untold)
        untold.ids -= set(tx.scalars(select(rounds.c.id).where(rounds.c.status == "closed")))
    return untold


def _look(tx: Connection, untold: Untold) -> None:
    """Note the rounds that are new on record, and forget those that never close any more."""
    known = rounds.c.id.in_(untold.ids) | (rounds.c.id > untold.newest)
    untold.ids = set(tx.scalars(select(rounds.c.id).where(known, rounds.c.status != "abandoned")))
    untold.newest = tx.scalar(select(func.max(rounds.c.id))) or 0


def closed_rounds(engine: Engine, untold: Untold) -> list[ClosedRound]:
    """Return the untold rounds that have closed, in the order in which they did.

    They stay untold until the caller takes their ids out.
    """
    with engine.database.connect() as tx:
        _look(tx, untold)
        query = (
            select(rounds, runs.c.name.label("run_name"))
            .join_from(rounds, runs)
            .where(rounds.c.id.in_(untold.ids), rounds.c.status == "closed")
            .order_by(rounds.c.closed, rounds.c.id)
        )
        found = []
        for row in tx.execute(query):
            sums = select(func.sum(tasks.c.bytes_up), func.sum(tasks.c.bytes_down)).where(
                tasks.c.round_id == row.id
            )
            up, down = tx.execute(sums).one()
            figures = {f"{row.kind}/{name}": float(v) for name, v in row.metrics.items()}
            figures |= {f"seconds/{row.kind}_{name}": float(v) for name, v in row.phases.items()}
            figures |= {
                f"bytes/{row.kind}_up": float(up or 0),
                f"bytes/{row.kind}_down": float(down or 0),
            }
            found.append(
                ClosedRound(
                    id=row.id,
                    run=row.run,
                    run_name=row.run_name,
                    round=row.round,
                    closed=row.closed or 0.0,
                    figures=figures,
                )
            )
        return found
