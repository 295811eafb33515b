"""Recomputing the global model of every round from the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from fedserver.rounds.closing import fold_job
from fedserver.rounds.engine import Engine
from fedserver.rounds.jobs import FoldJob
from fedserver.rounds.view import removed_text
from fedserver.storage.payloads import PayloadStore
from fedserver.storage.schema import rounds
from motley.errors import MotleyError
from motley.wire import file_sha256


@dataclass(frozen=True)
class Replay:
    """One closed round, to be computed again."""

    round: int
    job: FoldJob
    recorded: str
    """Digest of the state that the record names."""
    removed: str = ""
    """Why it cannot be computed again: housekeeping removed what it needs."""

    def run(self, payloads: PayloadStore) -> dict[str, Any]:
        """Fold the recorded updates again and compare digests; never changes the record."""
        record: dict[str, Any] = {
            "round": self.round,
            "participants": [update.client for update in self.job.updates],
            "recorded": self.recorded,
            "recomputed": "",
            "agrees": False,
            "pruned": bool(self.removed),
            "problem": self.removed,
        }
        if self.removed:
            return record
        try:
            for digest in [self.job.state, *(update.digest for update in self.job.updates)]:
                if file_sha256(payloads.path(digest)).hex() != digest:
                    return {**record, "problem": f"stored payload {digest} is damaged"}
            with payloads.scratch(f"replay-{self.job.round_id}") as out:
                recomputed = self.job.fold_to(payloads, out)
        except (MotleyError, OSError) as error:
            return {**record, "problem": str(error)}
        return {**record, "recomputed": recomputed, "agrees": recomputed == self.recorded}


def plan_replay(engine: Engine, run: str) -> list[Replay]:
    """Return the closed training rounds of a run in order; raise UnknownRunError."""
    with engine.database.connect() as tx:
        row = engine.find(tx, run)
        context = engine.context(tx, row.id)
        removed = removed_text(context.runfile.keep.rounds)
        closed = tx.execute(
            select(rounds)
            .where(rounds.c.run == row.id, rounds.c.kind == "train", rounds.c.status == "closed")
            .order_by(rounds.c.id)
        ).all()
        return [
            Replay(
                current.round,
                fold_job(tx, context, current),
                current.state_after,
                removed if current.pruned else "",
            )
            for current in closed
        ]


def removed_since(engine: Engine, entry: Replay) -> str:
    """Return the text when housekeeping took a round's payloads after its replay was planned."""
    with engine.database.connect() as tx:
        pruned = tx.scalar(select(rounds.c.pruned).where(rounds.c.id == entry.job.round_id))
    return removed_text(entry.job.context.runfile.keep.rounds) if pruned or pruned is None else ""
