"""Ending a round: at its goal, at its deadline, or with nobody left to wait for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, bindparam, func, select, update
from structlog.stdlib import get_logger

from fedserver.rounds.context import RunContext
from fedserver.rounds.coverage import warn_of_uncovered
from fedserver.rounds.jobs import CountedUpdate, FoldJob
from fedserver.storage.schema import members, rounds, runs, tasks
from motley.plan import Plan
from motley.task import RESERVED_METRICS

if TYPE_CHECKING:
    from fedserver.rounds.engine import Engine

log = get_logger()

OPEN_TASKS = ("planned", "offered", "taken")
MOST_REASONS = 3
"""Of clients' failures that a paused run's reason tells: where all fail, all say the same."""


def close_if_due(engine: Engine, tx: Connection, current: Any) -> bool:
    """Close a round at its goal, at its deadline, or when nobody is left to wait for."""
    mine = tasks.c.round_id == current.id
    # Counted by the database: this is asked after each update, of which there may be thousands.
    counts = select(tasks.c.status, func.count().label("n")).where(mine).group_by(tasks.c.status)
    number = {row.status: row.n for row in tx.execute(counts)}
    arrived = number.get("accepted", 0) + number.get("done", 0)
    waiting = any(status in number for status in OPEN_TASKS)
    overdue = engine.clock.monotonic() >= engine.deadlines.get(current.id, float("inf"))
    if arrived < current.goal and waiting and not overdue:
        return False
    outcome = "surplus" if arrived >= current.goal else "late"
    tx.execute(
        update(tasks)
        .where(mine, tasks.c.status.in_(OPEN_TASKS))
        .values(status=outcome, ended=engine.clock.wall())
    )
    engine.deadlines.pop(current.id, None)
    if current.kind == "evaluate" or arrived >= max(1, current.minimum):
        now = engine.clock.wall()
        phases = {**current.phases, "collect": engine.elapsed(current.id, current.opened)}
        engine.phases.pop(current.id, None)
        tx.execute(
            update(rounds)
            .where(rounds.c.id == current.id)
            .values(status="closing", closed=now, phases=phases)
        )
        return True
    why = f"{arrived} of at least {max(1, current.minimum)} updates came"
    why += " before the deadline" if overdue else " and nobody is left to wait for"
    _abandon(engine, tx, current, why)
    context = engine.context(tx, current.run)
    if _failures(tx, current) > context.runfile.round.retries:
        given = select(tasks.c.reason).where(mine, tasks.c.reason != "").distinct()
        reasons = sorted(tx.scalars(given))
        detail = "".join(f"; {reason}" for reason in reasons[:MOST_REASONS])
        if len(reasons) > MOST_REASONS:
            detail += f"; and {len(reasons) - MOST_REASONS} more: `fedserver show --json` has all"
        engine.set_status(
            tx, current.run, "paused", f"round {current.round}: {why}{detail}", ended=False
        )
    return True


def _failures(tx: Connection, current: Any) -> int:
    """Return how often this round was abandoned since the operator last resumed the run."""
    since = select(runs.c.retry_from).where(runs.c.id == current.run).scalar_subquery()
    same = select(func.count()).where(
        rounds.c.run == current.run,
        rounds.c.round == current.round,
        rounds.c.kind == current.kind,
        rounds.c.status == "abandoned",
        rounds.c.id > since,
    )
    return tx.scalar(same) or 0


def _abandon(engine: Engine, tx: Connection, current: Any, reason: str) -> None:
    """End a round without counting it; its updates are forgotten, personal states stay."""
    engine.deadlines.pop(current.id, None)
    engine.phases.pop(current.id, None)
    engine.unkept.add(current.run)
    tx.execute(
        update(rounds)
        .where(rounds.c.id == current.id)
        .values(status="abandoned", reason=reason, closed=engine.clock.wall())
    )
    tx.execute(
        update(tasks)
        .where(tasks.c.round_id == current.id, tasks.c.status.in_((*OPEN_TASKS, "accepted")))
        .values(status="late", ended=engine.clock.wall())
    )
    log.warning(
        "round_abandoned",
        run=current.run,
        round=current.round,
        attempt=current.attempt,
        reason=reason,
    )


def abandon_open(engine: Engine, tx: Connection, run_id: str, reason: str) -> None:
    """Abandon whatever round of a run is not closed yet."""
    query = select(rounds).where(
        rounds.c.run == run_id, rounds.c.status.in_(("opening", "open", "closing"))
    )
    for current in tx.execute(query).all():
        _abandon(engine, tx, current, reason)


def fold_job(tx: Connection, context: RunContext, current: Any) -> FoldJob:
    """Return the fold of a round from the record; also what `replay` recomputes."""
    rows = tx.execute(
        select(tasks)
        .where(tasks.c.round_id == current.id, tasks.c.status.in_(("accepted", "counted")))
        .order_by(tasks.c.client)
    )
    return FoldJob(
        context=context,
        round_id=current.id,
        round=current.round,
        state=current.state_before,
        updates=[
            CountedUpdate(
                client=row.client,
                digest=row.update,
                plan=Plan.from_json(row.spec["plan"]),
                scalars=row.scalars,
            )
            for row in rows
        ],
    )


def folded(engine: Engine, tx: Connection, job: FoldJob, digest: str, seconds: float) -> None:
    """Close a training round: the new state, and every counted client's new version."""
    current = tx.execute(select(rounds).where(rounds.c.id == job.round_id)).first()
    if current is None or current.status != "closing":
        return  # stopped or removed meanwhile
    engine.unkept.add(current.run)
    accepted = tasks.c.round_id == job.round_id, tasks.c.status == "accepted"
    chosen = select(tasks.c.id, tasks.c.client, tasks.c.metrics).where(*accepted)
    rows = tx.execute(chosen).all()
    tx.execute(update(tasks).where(*accepted).values(status="counted"))
    if rows:
        counted = update(members).where(
            members.c.run == current.run, members.c.client == bindparam("who")
        )
        versions = [{"who": row.client, "version": row.id} for row in rows]
        tx.execute(counted.values(counted_version=bindparam("version")), versions)
    tx.execute(
        update(rounds)
        .where(rounds.c.id == job.round_id)
        .values(
            status="closed",
            state_after=digest,
            reason=warn_of_uncovered(
                job.context, current, [update.plan for update in job.updates], "counted"
            ),
            phases={**current.phases, "fold": seconds},
            metrics=mean_metrics(rows),
        )
    )
    tx.execute(
        update(runs).where(runs.c.id == current.run).values(round=current.round, state=digest)
    )
    log.info("round_closed", run=current.run, round=current.round, updates=len(rows))


def evaluated(
    engine: Engine, tx: Connection, round_id: int, extra: dict[str, float], problem: str = ""
) -> None:
    """Close an evaluation round with its clients' means and the server's own figures.

    `problem` says why the server has none.
    """
    current = tx.execute(select(rounds).where(rounds.c.id == round_id)).first()
    if current is None or current.status != "closing":
        return  # stopped or removed meanwhile
    engine.unkept.add(current.run)
    rows = tx.execute(
        select(tasks).where(tasks.c.round_id == round_id, tasks.c.status == "done")
    ).all()
    metrics = {**mean_metrics(rows), **extra}
    tx.execute(
        update(rounds)
        .where(rounds.c.id == round_id)
        .values(status="closed", state_after=current.state_before, metrics=metrics, reason=problem)
    )
    log.info("evaluated", run=current.run, round=current.round, metrics=metrics)


def mean_metrics(rows: Any) -> dict[str, float]:
    """Return each metric's plain mean over clients, in order of name.

    Personalised methods report the average over clients of local accuracy (QuPeD section 5),
    so that a client with little data counts as much as any other. Clients whose personal model is
    untrained are not in it; how many they are is told as `untrained`.
    """
    names = sorted({name for row in rows for name in row.metrics})
    means = {}
    for name in names:
        values = [
            row.metrics[name]
            for row in sorted(rows, key=lambda r: str(r.client))
            if name in row.metrics
        ]
        mean = sum(values) / (1 if name in RESERVED_METRICS else len(values))
        if math.isfinite(mean):  # values of 1e308 are, and their sum is not
            means[name] = mean
    return means
