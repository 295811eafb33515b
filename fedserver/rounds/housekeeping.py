"""What of the stored payloads is still needed, and what goes.

Needed are: every run's newest state; states, broadcasts and counted updates of rounds that are
under way and of the last `keep.rounds` closed ones; payloads of open tasks, finish tasks too; and
files that a run is yet to start from. A round whose payloads are no longer kept is marked in the
record (`rounds.pruned`) before a file goes. How files go while updates come in is written at
`PayloadStore`. All functions here run on the database thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, and_, or_, select, update
from structlog.stdlib import get_logger

from fedserver.storage.schema import rounds, runs, tasks
from motley.errors import MotleyError

if TYPE_CHECKING:
    from fedserver.rounds.engine import Engine
    from fedserver.storage.payloads import PayloadStore

log = get_logger()

BATCH = 100
"""Rounds that one transaction marks."""
_CHUNK = 400
"""Digests that one question to the database names."""
OPEN_TASKS = ("planned", "offered", "taken")


def judge(engine: Engine, payloads: PayloadStore) -> bool:
    """Mark rounds that are no longer kept, and doom payloads that nobody needs.

    Returns whether there is more to mark: it is then called again.
    """
    suspects = payloads.take_suspects()
    try:
        with engine.transition() as tx:
            unkept = set(engine.unkept)
            done = {run_id for run_id in unkept if _mark(engine, tx, run_id, suspects)}
        with engine.database.connect() as tx:
            free = unneeded(tx, suspects, engine.payload_path)
    except BaseException:
        payloads.suspect(suspects)
        raise
    engine.unkept -= done
    payloads.doom(free)
    return bool(unkept - done)


def _mark(engine: Engine, tx: Connection, run_id: str, suspects: set[str]) -> bool:
    """Mark up to `BATCH` rounds of a run; return whether that were all."""
    run = tx.execute(select(runs).where(runs.c.id == run_id)).first()
    if run is None:
        return True
    suspects.update(_not_counted(tx, run))
    try:
        keep = engine.context(tx, run_id).runfile.keep.rounds
    except MotleyError:
        return True  # a run file that this version cannot read: everything stays
    ended = rounds.c.status == "abandoned"
    if keep:
        ended = or_(ended, and_(rounds.c.status == "closed", rounds.c.round <= run.round - keep))
    due = tx.execute(
        select(rounds)
        .where(rounds.c.run == run_id, rounds.c.pruned.is_(False), ended)
        .order_by(rounds.c.id)
        .limit(BATCH)
    ).all()
    if not due:
        return True
    ids = [row.id for row in due]
    tx.execute(update(rounds).where(rounds.c.id.in_(ids)).values(pruned=True))
    suspects.update(_named_by(tx, due))
    log.info("rounds_pruned", run=run_id, rounds=len(ids), newest=due[-1].round)
    return len(due) < BATCH


def _not_counted(tx: Connection, run: Any) -> set[str]:
    """Return the updates of the newest rounds that came but did not count."""
    found = tx.scalars(
        select(tasks.c.update)
        .join(rounds, rounds.c.id == tasks.c.round_id)
        .where(rounds.c.run == run.id, rounds.c.round >= run.round)
        .where(tasks.c.status.in_(("surplus", "late")), tasks.c.update != "")
    )
    return set(found)


def _named_by(tx: Connection, found: Sequence[Any]) -> set[str]:
    """Return all digests that these rounds and their tasks name."""
    digests = {row.state_before for row in found} | {row.state_after for row in found}
    named = select(tasks.c.payload, tasks.c.update)
    for row in tx.execute(named.where(tasks.c.round_id.in_([row.id for row in found]))):
        digests |= {row.payload, row.update}
    return digests - {""}


def digests_of(tx: Connection, run: Any) -> set[str]:
    """Return all digests that a run's record names."""
    found = tx.execute(select(rounds).where(rounds.c.run == run.id)).all()
    digests = {run.state} | {row.state_before for row in found} | {row.state_after for row in found}
    for row in tx.execute(select(tasks.c.payload, tasks.c.update).where(tasks.c.run == run.id)):
        digests |= {row.payload, row.update}
    return digests - {""}


def unneeded(
    tx: Connection, digests: Iterable[str], payload_path: Callable[[str], Path]
) -> set[str]:
    """Return those of the digests that no row of the record needs."""
    left = set(digests)
    if left:
        left -= {payload for payload in left if str(payload_path(payload).resolve()) in _inits(tx)}
    ordered = sorted(left)
    for start in range(0, len(ordered), _CHUNK):
        chunk = ordered[start : start + _CHUNK]
        for query in _needs(chunk):
            left.difference_update(digest for row in tx.execute(query) for digest in row)
    return left


def _inits(tx: Connection) -> set[str]:
    """Return the files that runs which are not prepared yet start from."""
    rows = tx.execute(select(runs.c.init, runs.c.model).where(runs.c.init != ""))
    return {row.init for row in rows if not row.model}


def _needs(chunk: Sequence[str]) -> list[Any]:
    """Return the queries that find digests of a chunk in rows that need them."""
    kept = and_(rounds.c.pruned.is_(False), rounds.c.status != "abandoned")
    of_round = tasks.outerjoin(rounds, rounds.c.id == tasks.c.round_id)
    return [
        select(runs.c.state).where(runs.c.state.in_(chunk)),
        select(rounds.c.state_before, rounds.c.state_after).where(
            kept, or_(rounds.c.state_before.in_(chunk), rounds.c.state_after.in_(chunk))
        ),
        select(tasks.c.payload)
        .select_from(of_round)
        .where(tasks.c.payload.in_(chunk), or_(tasks.c.status.in_(OPEN_TASKS), kept)),
        select(tasks.c.update)
        .select_from(of_round)
        .where(tasks.c.update.in_(chunk), tasks.c.status.in_(("accepted", "counted")), kept),
    ]


def over(engine: Engine, task_ids: Iterable[str]) -> list[str]:
    """Return those of the tasks for which no update can come any more."""
    wanted = sorted(task_ids)
    found: set[str] = set()
    with engine.database.connect() as tx:
        for start in range(0, len(wanted), _CHUNK):
            query = select(tasks.c.id).where(
                tasks.c.id.in_(wanted[start : start + _CHUNK]),
                tasks.c.status.in_(("offered", "taken")),
            )
            found.update(tx.scalars(query))
    return [task_id for task_id in wanted if task_id not in found]
