"""Beginning a round: who takes part, what each is to do, which broadcasts exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, bindparam, func, insert, select, update
from structlog.stdlib import get_logger

from fedserver.rounds.context import RunContext
from fedserver.rounds.coverage import warn_of_uncovered
from fedserver.rounds.jobs import Form, OpenJob
from fedserver.rounds.membership import refusal
from fedserver.rounds.presence import PRESENT_SECONDS
from fedserver.storage.schema import clients, members, rounds, runs, tasks
from motley.algorithms.base import Member, Moment
from motley.plan import Plan
from motley.seeding import numpy_generator

if TYPE_CHECKING:
    from fedserver.rounds.engine import Engine

log = get_logger()

TAKES_PART: ColumnElement[bool] = members.c.excluded == ""


def begin(
    engine: Engine, tx: Connection, run: Any, context: RunContext, kind: str, number: int
) -> bool:
    """Choose the cohort, plan for each and put the round on record."""
    earlier = tx.execute(
        select(rounds).where(
            rounds.c.run == run.id, rounds.c.round == number, rounds.c.kind == kind
        )
    ).all()
    attempt = len(earlier)
    if kind == "evaluate" and context.is_private:
        # The server's own data alone: what clients score is theirs. Nobody need be there.
        _add_round(engine, tx, run, context, kind, number, attempt, 0, 0)
        return True
    enrolled = enrolled_members(tx, run.id, context)
    rules = context.runfile.clients
    minimum = rules.minimum if kind == "train" else 0
    if len(enrolled) < max(1, minimum):
        _pause(engine, tx, run, number, max(1, minimum))
        return True
    here = engine.presence.here(engine.clock.monotonic())
    candidates = [m for m in enrolled if m.name in here and not refusal(context, here[m.name])]
    away = {m.name for m in enrolled} - {m.name for m in candidates}
    if _just_started(engine) and away - _put_aside(engine, tx):
        # Who takes part must not hang on who reconnects first after a restart.
        found = f"{len(candidates)} of {len(enrolled)} clients are back after the restart"
        return _wait(tx, run, f"round {number}: {found}")
    failed_before = _failed_in(tx, [r.id for r in earlier if r.id > run.retry_from])
    goal = max(minimum, rules.goal(len(enrolled)))
    fresh = [m for m in candidates if m.name not in failed_before]
    if len(fresh) >= max(1, minimum):
        candidates = fresh
    if len(candidates) < max(1, minimum):
        found = f"{len(candidates)} of {minimum or 1} clients are here"
        unfit = {m.name: refusal(context, here[m.name]) for m in enrolled if m.name in here}
        found += "".join(f"; {name}: {why}" for name, why in unfit.items() if why)
        return _wait(tx, run, f"round {number}: {found}")
    if kind == "evaluate":
        goal = max(1, round(context.runfile.evaluate.fraction * len(candidates)))
    wanted = goal
    if kind == "train":  # 50 x 1.1 comes out above 55
        wanted = min(len(candidates), ceil(goal * rules.over_select - 1e-9))
    rng = numpy_generator(context.runfile.run.seed, "select", kind, number, attempt)
    moment = moment_of(tx, run, context, max(1, number))
    cohort = context.algorithm.select(candidates, wanted, rng, moment)
    round_id = _add_round(
        engine, tx, run, context, kind, number, attempt, min(goal, len(cohort)), minimum
    )
    add_tasks(tx, run, context, cohort, moment, kind, attempt, round_id)
    return True


def _failed_in(tx: Connection, attempts: Sequence[int]) -> set[str]:
    """Return the clients that failed or were too slow in these attempts at a round.

    Who sent in time did neither, although an abandoned round has no use for the update.
    """
    failed = select(tasks.c.client).where(
        tasks.c.round_id.in_(attempts),
        tasks.c.status.in_(("failed", "late")),
        tasks.c.spec["receipt"].as_string().is_distinct_from("accepted"),
    )
    return set(tx.scalars(failed))


def _add_round(
    engine: Engine,
    tx: Connection,
    run: Any,
    context: RunContext,
    kind: str,
    number: int,
    attempt: int,
    goal: int,
    minimum: int,
) -> int:
    """Put a round on record, whose broadcasts are to be encoded yet; return its id."""
    if run.reason:
        tx.execute(update(runs).where(runs.c.id == run.id).values(reason=""))
    section = context.runfile.round if kind == "train" else context.runfile.evaluate
    inserted = tx.execute(
        insert(rounds).values(
            run=run.id,
            round=number,
            kind=kind,
            attempt=attempt,
            status="opening",
            goal=goal,
            minimum=minimum,
            seconds_left=section.deadline_seconds,
            opened=engine.clock.wall(),  # until its broadcasts are encoded
            state_before=run.state,
        )
    ).inserted_primary_key
    assert inserted is not None
    round_id = int(inserted[0])
    engine.phases[round_id] = engine.clock.monotonic()
    return round_id


def moment_of(tx: Connection, run: Any, context: RunContext, number: int) -> Moment:
    """Return where a run stands before round `number`, with what its last round measured."""
    closed = select(func.max(rounds.c.id)).where(
        rounds.c.run == run.id, rounds.c.kind == "train", rounds.c.status == "closed"
    )
    counted = select(tasks.c.client, tasks.c.scalars).where(
        tasks.c.round_id == closed.scalar_subquery(), tasks.c.status == "counted"
    )
    return Moment(
        round=number,
        rounds=run.rounds,
        seed=context.runfile.run.seed,
        deadline=context.runfile.round.deadline_seconds,
        last={row.client: row.scalars for row in tx.execute(counted.order_by(tasks.c.client))},
    )


def _just_started(engine: Engine) -> bool:
    return engine.clock.monotonic() - engine.started < PRESENT_SECONDS


def _put_aside(engine: Engine, tx: Connection) -> set[str]:
    """Return the clients that are not let in for a while: nobody need wait for them."""
    aside = select(clients.c.name).where(clients.c.set_aside_until > engine.clock.wall())
    return set(tx.scalars(aside))


def _pause(engine: Engine, tx: Connection, run: Any, number: int, minimum: int) -> None:
    """Pause a run that has lost too many of its clients for good, with their reasons."""
    gone = tx.execute(
        select(members.c.client, members.c.excluded)
        .where(members.c.run == run.id, members.c.excluded != "")
        .order_by(members.c.client)
    ).all()
    reasons = "; ".join(f"{row.client}: {row.excluded}" for row in gone)
    reason = f"round {number} needs {minimum} clients, and {len(gone)} are out: {reasons}"
    engine.set_status(tx, run.id, "paused", reason)


def _wait(tx: Connection, run: Any, reason: str) -> bool:
    if run.reason != reason:
        tx.execute(update(runs).where(runs.c.id == run.id).values(reason=reason))
        log.info("round_waiting", run=run.id, reason=reason)
    return False


def enrolled_members(
    tx: Connection, run_id: str, context: RunContext, chosen: ColumnElement[bool] = TAKES_PART
) -> list[Member]:
    """Return the `chosen` of a run's clients, default: who is not excluded, in order of name."""
    query = select(members, chosen.label("chosen")).where(members.c.run == run_id)
    rows = tx.execute(query.order_by(members.c.client)).all()
    # A client that leaves the run does not move the others to another place.
    return [context.member(row, index, len(rows)) for index, row in enumerate(rows) if row.chosen]


def add_tasks(
    tx: Connection,
    run: Any,
    context: RunContext,
    cohort: Sequence[Member],
    moment: Moment,
    kind: str,
    attempt: int,
    round_id: int | None,
    **values: Any,
) -> None:
    """Plan for each client and put its task on record, not yet offered unless `values` say so."""
    known = select(members.c.client, members.c.counted_version, members.c.threads)
    frozen = {row.client: row for row in tx.execute(known.where(members.c.run == run.id))}
    added = []
    for member in cohort:
        plan, row = context.algorithm.plan(member, moment), frozen[member.name]
        if kind != "train":
            # What is tested or kept is the global model, not the part of it that a client trains.
            plan = replace(plan, sparsity=None)
        task_id = f"{run.id}-{moment.round:05d}-{attempt}-{kind}-{member.name}"
        if round_id is None:
            task_id = f"{run.id}-{run.rounds:05d}-finish-{member.name}"
        spec = {
            "round": moment.round,
            "rounds": moment.rounds,
            "attempt": attempt,
            "plan": plan.to_json(),
            "base_version": row.counted_version,
            "threads": row.threads,
        }
        task = {"id": task_id, "run": run.id, "round_id": round_id, "client": member.name}
        added.append({**task, "kind": kind, "status": "planned", "spec": spec, **values})
    if added:
        tx.execute(insert(tasks), added)


def open_job(tx: Connection, context: RunContext, current: Any) -> OpenJob:
    """Return the encoding work of a round that is on record but not offered yet."""
    plans = tx.scalars(select(tasks.c.spec).where(tasks.c.round_id == current.id)).all()
    return OpenJob(
        context=context,
        round_id=current.id,
        round=current.round,
        state=current.state_before,
        forms=frozenset(Form.of(Plan.from_json(spec["plan"])) for spec in plans),
    )


def opened(
    engine: Engine, tx: Connection, job: OpenJob, digests: dict[Form, str], woken: set[str]
) -> None:
    """Offer a round's tasks: its broadcasts are encoded."""
    current = tx.execute(select(rounds).where(rounds.c.id == job.round_id)).first()
    if current is None or current.status != "opening":
        return  # stopped or removed meanwhile
    broadcast = needs_broadcast(job.context, current.kind)
    # Tasks of clients that were shut out or put aside meanwhile have ended, and stay so.
    planned = select(tasks.c.id, tasks.c.client, tasks.c.spec).where(
        tasks.c.round_id == job.round_id, tasks.c.status == "planned"
    )
    plans, offers = [], []
    for row in tx.execute(planned).all():
        plan = Plan.from_json(row.spec["plan"])
        plans.append(plan)
        payload = digests[Form.of(plan)] if broadcast else ""
        offers.append({"task": row.id, "digest": payload})
        woken.add(row.client)
    if offers:
        offer = update(tasks).where(tasks.c.id == bindparam("task"))
        tx.execute(offer.values(status="offered", payload=bindparam("digest")), offers)
    phases = {"open": engine.elapsed(current.id, current.opened)}
    now, engine.phases[current.id] = engine.clock.wall(), engine.clock.monotonic()
    tx.execute(
        update(rounds)
        .where(rounds.c.id == job.round_id)
        .values(
            status="open",
            opened=now,
            phases=phases,
            reason=warn_of_uncovered(job.context, current, plans, "planned"),
        )
    )
    engine.set_deadline(job.round_id, current.seconds_left)
    log.info(
        "round_opened",
        run=current.run,
        round=current.round,
        kind=current.kind,
        attempt=current.attempt,
        clients=len(woken),
    )


def needs_broadcast(context: RunContext, kind: str, *, trained: bool = True) -> bool:
    """Return whether a task of this kind starts from the global model.

    `trained`: whether an update of the client was ever counted.
    """
    algorithm = context.algorithm
    if not algorithm.has_global_model:
        return False
    if kind == "train" or algorithm.personal_from_global:
        return True
    if kind == "finish" and not trained:
        own = [tier.settings for tier in context.runfile.tiers]
        planned = algorithm.settings.planned()
        if any(algorithm.begins_global({**planned, **settings}) for settings in own):
            return True
    if kind == "evaluate":
        return algorithm.evaluated_model(context.runfile.evaluate.subject) != "personal"
    return not algorithm.keeps_personal_state
