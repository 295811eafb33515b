"""How a running run moves from round to round, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select, update
from structlog.stdlib import get_logger

from fedserver.rounds.closing import OPEN_TASKS, close_if_due, evaluated, fold_job
from fedserver.rounds.context import RunContext
from fedserver.rounds.exclusion import MAY_RECEIVE
from fedserver.rounds.jobs import HeldOutJob, Job
from fedserver.rounds.opening import (
    add_tasks,
    begin,
    enrolled_members,
    moment_of,
    needs_broadcast,
    open_job,
)
from fedserver.storage.schema import members, rounds, tasks

if TYPE_CHECKING:
    from fedserver.rounds.engine import Engine

log = get_logger()


def step(engine: Engine, tx: Connection, run: Any, woken: set[str]) -> tuple[bool, Job | None]:
    """Make one transition of a running run; return (whether one was made, job that stands next)."""
    context = engine.context(tx, run.id)
    current = tx.execute(
        select(rounds)
        .where(rounds.c.run == run.id, rounds.c.status.in_(("opening", "open", "closing")))
        .order_by(rounds.c.id)
    ).first()
    if current is None:
        return _next_round(engine, tx, run, context, woken), None
    if current.status == "opening":
        return False, open_job(tx, context, current)
    if current.status == "open":
        return close_if_due(engine, tx, current), None
    if current.kind == "evaluate":
        if context.runfile.evaluate.held_out and context.algorithm.has_global_model:
            return False, HeldOutJob(
                context=context,
                round_id=current.id,
                state=current.state_before,
                mappings=engine.mappings,
            )
        evaluated(engine, tx, current.id, {})
        return True, None
    return False, fold_job(tx, context, current)


def _finish(engine: Engine, tx: Connection, run: Any, context: RunContext, woken: set[str]) -> None:
    """End a run; every client gets a finish task now, absent ones when they return."""
    moment = moment_of(tx, run, context, run.rounds)
    for trained in (True, False):
        was_counted = (members.c.counted_version != "") == trained
        receiving = enrolled_members(tx, run.id, context, MAY_RECEIVE & was_counted)
        payload = run.state if needs_broadcast(context, "finish", trained=trained) else ""
        offered = {"status": "offered", "payload": payload}
        add_tasks(tx, run, context, receiving, moment, "finish", 0, None, **offered)
        woken.update(member.name for member in receiving)
    engine.set_status(tx, run.id, "finished", "", ended=True)


def withdraw_finish_tasks(engine: Engine, tx: Connection, run_id: str) -> None:
    """Take back finish tasks that nobody has begun: the run goes on."""
    tx.execute(
        update(tasks)
        .where(tasks.c.run == run_id, tasks.c.kind == "finish", tasks.c.status.in_(OPEN_TASKS))
        .values(status="late", ended=engine.clock.wall())
    )


def _next_round(
    engine: Engine, tx: Connection, run: Any, context: RunContext, woken: set[str]
) -> bool:
    """Begin the round that stands next, or finish the run; False when too few are there."""
    if _evaluation_is_due(tx, run, context):
        return begin(engine, tx, run, context, "evaluate", run.round)
    if run.round >= run.rounds:
        _finish(engine, tx, run, context, woken)
        return True
    return begin(engine, tx, run, context, "train", run.round + 1)


def _evaluation_is_due(tx: Connection, run: Any, context: RunContext) -> bool:
    every = context.runfile.evaluate.every
    if not every or run.round == 0 or (run.round % every and run.round < run.rounds):
        return False
    done = select(rounds.c.id).where(
        rounds.c.run == run.id,
        rounds.c.round == run.round,
        rounds.c.kind == "evaluate",
        rounds.c.status != "abandoned",
    )
    return tx.execute(done).first() is None
