"""Runs, rounds and clients as records for people and scripts (docs/control.md)."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, select

from fedserver.errors import RunStateError, UnknownRunError
from fedserver.rounds.engine import ACTIVE, ENDED, Engine
from fedserver.rounds.lines import finite
from fedserver.rounds.presence import Profile
from fedserver.rounds.private import statement
from fedserver.storage.schema import certificates, clients, members, rounds, runs, tasks
from motley.algorithms.base import sent_width
from motley.errors import MotleyError
from motley.plan import FULL_PRECISION


def run_record(engine: Engine, run: str, *, after_round_id: int = 0) -> dict[str, Any]:
    """Return one run whole; of its history, only rounds recorded after `after_round_id`."""
    with engine.database.connect() as tx:
        row = engine.find(tx, run)
        return {
            **_summary(engine, tx, row),
            **_method(engine, tx, row.id),
            "finish_waiting_present": _finishing(engine, tx, row.id),
            "clients": _clients(tx, row),
            "history": _history(tx, row.id, rounds.c.id > after_round_id),
            "current": _current(engine, tx, row.id),
        }


def round_record(engine: Engine, run: str, number: int) -> dict[str, Any]:
    """Return what a run's record says of one round and of who and what was in it, and no sums.

    `number` 0: the newest closed training round.
    """
    with engine.database.connect() as tx:
        row = engine.find(tx, run)
        mine = select(members).where(members.c.run == row.id).order_by(members.c.client)
        return {
            **{name: getattr(row, name) for name in ("id", "name", "status", "round")},
            **_method(engine, tx, row.id),
            "clients": [_member(found) for found in tx.execute(mine)],
            "history": _history(tx, row.id, rounds.c.round == (number or row.round)),
            "current": _current(engine, tx, row.id),
        }


def _method(engine: Engine, tx: Connection, run_id: str) -> dict[str, Any]:
    """Return what the run file says; blanks when this version of the program cannot read it."""
    try:
        context = engine.context(tx, run_id)
    except MotleyError:
        nothing = {"algorithm": "", "workload": "", "local_steps": 0, "keep": 0, "layers": {}}
        model = {"arguments": {}, "global_variant": "", "held_out": ""}
        return {**nothing, **model, "privacy": None}
    tables = context.model.tables if context.model else {}
    has_global = context.model is not None and context.algorithm.has_global_model
    return {
        "algorithm": context.algorithm.name,
        "workload": context.runfile.workload.name,
        "arguments": dict(context.runfile.workload.arguments),
        "global_variant": context.prepared.global_variant if has_global else "",
        "held_out": context.runfile.evaluate.held_out,
        "local_steps": context.algorithm.local_steps,
        "keep": context.runfile.keep.rounds,
        "layers": {variant: table.quantized_sizes for variant, table in tables.items()},
        "privacy": statement(context),
    }


def model_digest(engine: Engine, run: str, number: int) -> str:
    """Return the digest of a run's global model after round `number`; 0: of the newest.

    Raises:
        UnknownRunError: no such run, round or model.
        RunStateError: that round's model is no longer kept.
    """
    record = run_record(engine, run)
    if not number:
        if not record["state"]:
            raise UnknownRunError(f"run {record['name']} has no model yet: {record['status']}")
        return str(record["state"])
    for entry in record["history"]:
        if (entry["round"], entry["kind"], entry["status"]) == (number, "train", "closed"):
            digest = str(entry["state_after"])
            if entry["pruned"] and not engine.payload_path(digest).exists():
                raise RunStateError(
                    f"round {number} of run {record['name']}: {removed_text(record['keep'])}; "
                    f"the newest model is there without --round"
                )
            return digest
    raise UnknownRunError(
        f"run {record['name']} has no closed round {number}; it has {record['round']}"
    )


def removed_text(keep: int) -> str:
    """Return what is said of a round whose payloads are gone."""
    return f"payloads removed by housekeeping (keep.rounds = {keep})"


def list_runs(engine: Engine) -> list[dict[str, Any]]:
    """Return a summary of every run, the newest first."""
    with engine.database.connect() as tx:
        rows = tx.execute(select(runs).order_by(runs.c.sequence.desc())).all()
        return [_summary(engine, tx, row) for row in rows]


def list_clients(engine: Engine) -> list[dict[str, Any]]:
    """Return every client that ever checked in or joined, with whether it is here now."""
    here = engine.presence.here(engine.clock.monotonic())
    now = engine.clock.wall()
    with engine.database.connect() as tx:
        rows = tx.execute(select(clients).order_by(clients.c.name)).all()
        held = _certificates(tx)
        working = {
            row.client: row.id
            for row in tx.execute(
                select(tasks.c.client, tasks.c.id).where(tasks.c.status == "taken")
            )
        }
    records = [
        {
            "name": row.name,
            "here": row.name in here,
            "last_seen_seconds": 0.0 if row.name in here else _silence(engine, row, now),
            "task": working.get(row.name, ""),
            "set_aside": row.set_aside if row.set_aside_until > now else "",
            "set_aside_seconds": round(max(0.0, row.set_aside_until - now), 1),
            "software": row.capabilities["software"],
            "workloads": row.capabilities["workloads"],
            "revoked": row.revoked or held.get(row.name, _NONE)["revoked"],
            "certificate_expires": held.get(row.name, _NONE)["certificate_expires"],
            **finite(row.profile),  # as records of older versions may not be
        }
        for row in rows
    ]
    seen = {record["name"] for record in records}
    records += [_never_here(name, held[name]) for name in sorted(held) if name not in seen]
    return sorted(records, key=lambda record: str(record["name"]))


def _silence(engine: Engine, row: Any, now: float) -> float:
    """Return how many seconds ago a client spoke; the record notes it as it leaves."""
    arrival = engine.presence.get(row.name)
    last: float = row.last_seen
    silent = now - last if arrival is None else engine.clock.monotonic() - arrival.seen
    return round(max(0.0, silent), 1)


_NONE: dict[str, Any] = {"revoked": "", "certificate_expires": None}


def _certificates(tx: Connection) -> dict[str, dict[str, Any]]:
    """Return of each client that joined when its newest certificate ends, and why none counts."""
    found: dict[str, dict[str, Any]] = {}
    mine = select(certificates).where(certificates.c.role == "client")
    # Those that count come last, and of them the one that lasts longest.
    for row in tx.execute(mine.order_by(certificates.c.revoked == "", certificates.c.not_after)):
        ends = None if row.revoked else row.not_after
        found[row.name] = {"revoked": row.revoked, "certificate_expires": ends}
    return found


def _never_here(name: str, certificate: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a client that joined and has not checked in yet."""
    return {
        "name": name,
        "here": False,
        "last_seen_seconds": None,
        "set_aside": "",
        "set_aside_seconds": 0.0,
        "task": "",
        "software": "",
        "workloads": {},
        **certificate,
        **vars(Profile()),
    }


def has_ended(record: dict[str, Any]) -> bool:
    """Return whether a run's record will not change any more by itself; a paused one waits."""
    if record["status"] == "paused":
        return True
    return record["status"] in ENDED and not (
        record["status"] == "finished" and record["finish_waiting_present"]
    )


_ROUNDS = tasks.c.spec["rounds"].as_integer()
"""Rounds that the run had when a task was planned: of finish tasks, which end they belong to."""


def _summary(engine: Engine, tx: Connection, row: Any) -> dict[str, Any]:
    counts = (
        select(tasks.c.status, func.count())
        .where(tasks.c.run == row.id, tasks.c.kind == "finish", row.rounds == _ROUNDS)
        .group_by(tasks.c.status)
    )
    finish: dict[str, int] = {found[0]: found[1] for found in tx.execute(counts)}
    down, up = tx.execute(
        select(func.sum(tasks.c.bytes_down), func.sum(tasks.c.bytes_up)).where(
            tasks.c.run == row.id
        )
    ).one()
    return {
        "id": row.id,
        "name": row.name,
        "status": row.status,
        "reason": (engine.trouble if row.status in ACTIVE else "") or row.reason,
        "round": row.round,
        "rounds": row.rounds,
        "state": row.state,
        "submitted": row.submitted,
        "started": row.started,
        "ended": row.ended,
        "bytes_down": down or 0,
        "bytes_up": up or 0,
        "finish_done": finish.get("done", 0),
        "finish_waiting": finish.get("offered", 0) + finish.get("taken", 0),
    }


def _finishing(engine: Engine, tx: Connection, run_id: str) -> int:
    """Return how many clients that are here still owe their finished model."""
    here = engine.presence.here(engine.clock.monotonic())
    owing = tx.scalars(
        select(tasks.c.client).where(
            tasks.c.run == run_id,
            tasks.c.kind == "finish",
            tasks.c.status.in_(("offered", "taken")),
        )
    )
    return sum(client in here for client in owing)


def _clients(tx: Connection, row: Any) -> list[dict[str, Any]]:
    """Return each member with what it did: counts, bytes, newest metrics of each kind."""
    found = tx.execute(
        select(members).where(members.c.run == row.id).order_by(members.c.client)
    ).all()
    records = {m.client: _member(m) for m in found}
    ended = tasks.c.status.in_(("accepted", "counted", "done", "failed"))
    order = func.coalesce(tasks.c.round_id, _ROUNDS)  # each attempt is a row of `rounds`
    # Once over the tasks of a run: there may be a hundred thousand of them.
    sums = (
        select(
            tasks.c.client,
            func.sum(tasks.c.bytes_down).label("bytes_down"),
            func.sum(tasks.c.bytes_up).label("bytes_up"),
            func.sum(case((tasks.c.status == "counted", 1), else_=0)).label("counted"),
            func.sum(case((tasks.c.restarted, 1), else_=0)).label("restarts"),
            func.max(case((ended, func.printf("%010d %s", order, tasks.c.id)))).label("newest"),
        )
        .where(tasks.c.run == row.id)
        .group_by(tasks.c.client, tasks.c.kind)
    )
    newest = []
    for found_sums in tx.execute(sums):
        record = records[found_sums.client]
        for name in ("bytes_down", "bytes_up", "counted", "restarts"):
            record[name] += getattr(found_sums, name)
        if found_sums.newest:
            newest.append(found_sums.newest.partition(" ")[2])
    for task in tx.execute(select(tasks).where(tasks.c.id.in_(newest))):
        record = records[task.client]
        if task.metrics:
            record["metrics"][task.kind] = {"round": task.spec["round"], **task.metrics}
        if task.kind == "finish" and task.spec["rounds"] == row.rounds:
            record["finished"] = task.status == "done"
            record["reason"] = record["reason"] or task.reason
    return list(records.values())


def _member(m: Any) -> dict[str, Any]:
    return {
        "name": m.client,
        "tier": m.tier,
        "variant": m.variant,
        "threads": m.threads,
        "counted": 0,
        "restarts": 0,
        "bytes_down": 0,
        "bytes_up": 0,
        "finished": False,
        "metrics": {},
        "reason": m.excluded,
    }


def _history(tx: Connection, run_id: str, wanted: ColumnElement[bool]) -> list[dict[str, Any]]:
    query = (
        select(rounds)
        .where(rounds.c.run == run_id, rounds.c.status.in_(("closed", "abandoned")))
        .where(wanted)
        .order_by(rounds.c.id)
    )
    records = []
    for row in tx.execute(query).all():
        cohort = tx.execute(
            select(tasks).where(tasks.c.round_id == row.id).order_by(tasks.c.client)
        ).all()
        records.append(
            {
                "id": row.id,
                "round": row.round,
                "kind": row.kind,
                "attempt": row.attempt,
                "status": row.status,
                "reason": row.reason,
                "pruned": row.pruned,
                "state_before": row.state_before,
                "state_after": row.state_after,
                "opened": row.opened,
                "seconds": {
                    **row.phases,
                    "train_slowest": max((t.seconds for t in cohort), default=0.0),
                },
                "metrics": row.metrics,
                "clients": {t.client: _participant(t) for t in cohort},
            }
        )
    return records


def _participant(task: Any) -> dict[str, Any]:
    return {
        "status": task.status,
        "reason": task.reason,
        "bytes_down": task.bytes_down,
        "bytes_up": task.bytes_up,
        "update": task.update,
        "seconds": task.seconds,
        "metrics": task.metrics,
        **_widths(task),
    }


def _round_widths(engine: Engine, tx: Connection, row: Any) -> dict[str, Any]:
    """Return the widths of a round under way by client; plans are read only if they hold any."""
    try:
        context = engine.context(tx, row.run)
    except MotleyError:
        return {}
    tiers = context.runfile.tiers
    if not context.algorithm.tiers_choose_bits and all(t.bits == FULL_PRECISION for t in tiers):
        return {}
    mine = select(tasks.c.client, tasks.c.spec, tasks.c.scalars).where(tasks.c.round_id == row.id)
    return {task.client: _widths(task) for task in tx.execute(mine.order_by(tasks.c.client))}


def _widths(task: Any) -> dict[str, dict[str, int]]:
    """Return a task's planned width of each unit, and the widths that came, where it has any."""
    planned = task.spec["plan"]["bits"]
    came = {unit: (task.scalars or {}).get(sent_width(unit)) for unit in planned}
    return {"bits": planned, "sent_bits": {u: int(w) for u, w in came.items() if w is not None}}


def _current(engine: Engine, tx: Connection, run_id: str) -> dict[str, Any] | None:
    row = tx.execute(
        select(rounds)
        .where(rounds.c.run == run_id, rounds.c.status.in_(("opening", "open", "closing")))
        .order_by(rounds.c.id)
    ).first()
    if row is None:
        return None
    mine = tasks.c.round_id == row.id
    cohort = tx.execute(
        select(tasks.c.client, tasks.c.status).where(mine).order_by(tasks.c.client)
    ).all()
    left = row.seconds_left
    if row.id in engine.deadlines:
        left = max(0.0, engine.deadlines[row.id] - engine.clock.monotonic())
    return {
        "round": row.round,
        "kind": row.kind,
        "attempt": row.attempt,
        "status": row.status,
        "goal": row.goal,
        "arrived": sum(t.status in ("accepted", "done") for t in cohort),
        "clients": {t.client: t.status for t in cohort},
        "widths": _round_widths(engine, tx, row),
        "seconds_left": left,
    }
