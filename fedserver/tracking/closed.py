"""What a tracker is told of a round that closed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import func, select

from fedserver.rounds.engine import Engine
from fedserver.storage.schema import rounds, runs, tasks


@dataclass(frozen=True, kw_only=True)
class ClosedRound:
    """One closed round."""

    id: int
    """Number of its record; grows."""
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


def newest_round(engine: Engine) -> int:
    """Return the number of the newest round on record; 0 without any."""
    with engine.database.connect() as tx:
        return tx.scalar(select(func.max(rounds.c.id)).where(rounds.c.status == "closed")) or 0


def closed_rounds(engine: Engine, after: int) -> list[ClosedRound]:
    """Return the rounds that closed after record `after`, in order."""
    with engine.database.connect() as tx:
        query = (
            select(rounds, runs.c.name.label("run_name"))
            .join_from(rounds, runs)
            .where(rounds.c.id > after, rounds.c.status == "closed")
            .order_by(rounds.c.id)
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
