"""What clients do with their tasks: take, send an update for, report on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, update
from structlog.stdlib import get_logger

from fedserver.errors import ProtocolError, UnknownTaskError
from fedserver.rounds.engine import Engine
from fedserver.storage.schema import members, rounds, runs, tasks
from motley.algorithms.base import UpdateFacts
from motley.models.units import UnitTable
from motley.plan import Plan
from motley.task import TaskKind, TaskSpec

log = get_logger()

FINISH_TRIES = 3
_OPEN = (
    select(tasks)
    .join(runs, runs.c.id == tasks.c.run)
    .where(tasks.c.client.in_(bindparam("clients", expanding=True)))
    .where(tasks.c.status.in_(("offered", "taken")))
    .where(runs.c.status.in_(("running", "finished")))
    .order_by(tasks.c.kind != "finish", tasks.c.id)
)


class Receipt(str, Enum):
    """What became of an update that the server got whole."""

    ACCEPTED = "accepted"
    SURPLUS = "surplus"
    LATE = "late"


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """Leave to send an update: what it has to be."""

    task_id: str
    client: str
    plan: Plan
    table: UnitTable
    state: Path
    """Global state that the round started from."""
    max_norm: float | None
    """Greatest L2 norm of the update against the broadcast; None: any."""
    run_seed: int = 0
    round: int = 0
    wants_distances: bool = False
    """Whether the check measures how far each unit moved."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the check of an update found out by the way."""

    widths: Mapping[str, int] = field(default_factory=dict)
    """Width of each unit that came in planes."""
    distances: Mapping[str, float] = field(default_factory=dict)
    """L2 norm of each unit's values against the global state, where the method wants it."""


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """A whole, checked update."""

    task_id: str
    digest: str
    """SHA-256 of the payload, hex."""
    size: int
    samples: int
    metrics: Mapping[str, float]
    seconds: float
    restarted: bool
    bytes_up: int
    """Bytes that travelled, repeated ones included."""
    found: Findings = field(default_factory=Findings)
    """What the check of the update found out."""


class TaskDesk:
    """The client-facing half of the engine. Methods run on the database thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def next_tasks(self, clients: Sequence[str]) -> list[TaskSpec | None]:
        """Return the oldest open task of each client, None for one that has none.

        A task that was taken before is given again: the client died over it.
        """
        found: dict[str, TaskSpec] = {}
        taken = []
        with self._engine.database.begin() as tx:
            for row in tx.execute(_OPEN, {"clients": list(clients)}).all():
                spec = None if row.client in found else self._readable(tx, row)
                if spec is not None:
                    found[row.client] = spec
                    taken += [row.id] if row.status == "offered" else []
            if taken:
                tx.execute(update(tasks).where(tasks.c.id.in_(taken)).values(status="taken"))
        return [found.get(client) for client in clients]

    def _readable(self, tx: Connection, row: Any) -> TaskSpec | None:
        """Read a task; one whose record cannot be read fails alone, not with its client."""
        try:
            spec = self._spec(tx, row)
        except Exception as error:
            log.exception("task_broken", run=row.run, client=row.client)
            values = {"status": "failed", "reason": f"internal error: {error!r}"}
            tx.execute(update(tasks).where(tasks.c.id == row.id).values(**values))
            return None
        log.info("task_given", run=spec.run_id, client=row.client, kind=row.kind, round=spec.round)
        return spec

    def _spec(self, tx: Connection, row: Any) -> TaskSpec:
        engine = self._engine
        context = engine.context(tx, row.run)
        runfile, detail = context.runfile, row.spec
        left = 0.0
        if row.round_id in engine.deadlines:
            left = max(0.001, engine.deadlines[row.round_id] - engine.clock.monotonic())
        size = engine.payload_path(row.payload).stat().st_size if row.payload else 0
        has_global = context.algorithm.has_global_model
        subject = context.algorithm.evaluated_model(runfile.evaluate.subject)
        return TaskSpec(
            task_id=row.id,
            kind=TaskKind(row.kind),
            run_id=row.run,
            run_name=context.name,
            round=detail["round"],
            rounds=detail["rounds"],
            attempt=detail["attempt"],
            algorithm=runfile.run.algorithm,
            workload=runfile.workload.name,
            workload_arguments=runfile.workload.arguments,
            plan=Plan.from_json(detail["plan"]),
            run_seed=runfile.run.seed,
            client=row.client,
            payload_sha256=bytes.fromhex(row.payload),
            payload_size=size,
            base_version=detail["base_version"],
            fresh_if_lost=runfile.run.on_lost_state == "restart",
            seconds_left=left,
            subject=subject if row.kind == "evaluate" else "",
            global_variant=context.prepared.global_variant if has_global else "",
            threads=detail["threads"],
        )

    def is_open(self, client: str, task_id: str) -> bool:
        """Return whether work on this task of this client can still count."""
        with self._engine.database.connect() as tx:
            found = tx.scalar(
                select(tasks.c.status).where(tasks.c.id == task_id, tasks.c.client == client)
            )
        return found in ("offered", "taken")

    def may_download(self, client: str, task_id: str, digest: str) -> None:
        """Raise UnknownTaskError unless this payload was offered to this client."""
        with self._engine.database.connect() as tx:
            row = self._row(tx, client, task_id)
        if row.payload != digest:
            raise UnknownTaskError(f"payload {digest} is not part of task {task_id}")
        if not self._engine.payload_path(digest).exists():
            raise UnknownTaskError(
                f"task {task_id} is over ({row.status}), and its payload is no longer kept"
            )

    def count_downloads(self, sent: Mapping[str, int]) -> None:
        """Add to the bytes that went out for each task."""
        add = update(tasks).where(tasks.c.id == bindparam("task"))
        counts = [{"task": task_id, "sent": count} for task_id, count in sent.items()]
        if counts:
            with self._engine.database.begin() as tx:
                tx.execute(add.values(bytes_down=tasks.c.bytes_down + bindparam("sent")), counts)

    def begin_upload(self, client: str, task_id: str, digest: str) -> Ticket | Receipt:
        """Return what the update must be, or what became of it when nothing is to be sent.

        Raises:
            UnknownTaskError: no such task, or another client's.
            ProtocolError: another update was accepted for it, or it takes none.
        """
        with self._engine.database.connect() as tx:
            row = self._row(tx, client, task_id)
            if row.kind != "train":
                raise ProtocolError(f"task {task_id} is of kind {row.kind}, which takes no update")
            settled = self._settled(row, digest)
            if settled is not None:
                return settled
            context = self._engine.context(tx, row.run)
            before = tx.scalar(select(rounds.c.state_before).where(rounds.c.id == row.round_id))
            return Ticket(
                task_id=task_id,
                client=client,
                plan=Plan.from_json(row.spec["plan"]),
                table=context.global_table,
                state=self._engine.payload_path(str(before)),
                max_norm=context.runfile.aggregate.max_update_norm,
                run_seed=context.runfile.run.seed,
                round=row.spec["round"],
                wants_distances=context.algorithm.wants_distances,
            )

    def was_received(self, task_id: str, digest: str) -> bool:
        """Return whether this very update is on record."""
        with self._engine.database.connect() as tx:
            found = tx.scalar(select(tasks.c.update).where(tasks.c.id == task_id))
        return found == digest

    def _settled(self, row: Any, digest: str) -> Receipt | None:
        if row.status in ("accepted", "counted"):
            if row.update != digest:
                raise ProtocolError(
                    f"task {row.id} has an accepted update already, and this is another one"
                )
            return Receipt.ACCEPTED
        if row.status in ("surplus", "late"):
            # The same update again is answered as the first time, also if its round was abandoned.
            first = row.spec.get("receipt", "") if row.update == digest else ""
            return Receipt(first or row.status)
        if row.status == "failed":
            raise ProtocolError(f"task {row.id} was reported as failed: {row.reason}")
        return None

    def accept(self, arrived: Arrived) -> Receipt:
        """Put an update on record; only after this is it acknowledged."""
        return self.accept_all([arrived])[0]

    def accept_all(self, updates: Sequence[Arrived]) -> list[Receipt]:
        """Put updates of one round on record, as they arrived one after another."""
        receipts, values = [], []
        with self._engine.transition() as tx:
            wanted = select(tasks).where(tasks.c.id.in_([a.task_id for a in updates]))
            rows = {row.id: row for row in tx.execute(wanted)}
            room: dict[int, int] = {}
            for arrived in updates:
                row = rows.get(arrived.task_id)
                if row is None:
                    raise UnknownTaskError(f"task {arrived.task_id} is gone: its run was removed")
                receipt = self._settled(row, arrived.digest)
                if receipt is None:
                    receipt = self._receipt(tx, row.round_id, room)
                    values.append(self._accepted(tx, row, arrived, receipt))
                    log.info(
                        "update_received", run=row.run, client=row.client, status=receipt.value
                    )
                receipts.append(receipt)
            if values:
                changed: dict[str, Any] = {
                    name: bindparam(f"new_{name}") for name in values[0] if name != "task"
                }
                tx.execute(
                    update(tasks).where(tasks.c.id == bindparam("new_task")).values(changed),
                    [{f"new_{name}": v for name, v in row.items()} for row in values],
                )
        if values:
            self._engine.changed()
        return receipts

    def _receipt(self, tx: Connection, round_id: int, room: dict[int, int]) -> Receipt:
        """Return what becomes of one more update of a round; `room` is what rounds still take."""
        if round_id not in room:
            current = tx.execute(
                select(rounds.c.status, rounds.c.goal).where(rounds.c.id == round_id)
            ).one()
            accepted = select(func.count()).where(
                tasks.c.round_id == round_id, tasks.c.status == "accepted"
            )
            left = max(0, current.goal - (tx.scalar(accepted) or 0))
            room[round_id] = left if current.status == "open" else -1
        if room[round_id] < 0:
            return Receipt.LATE
        if room[round_id] == 0:
            return Receipt.SURPLUS
        room[round_id] -= 1
        return Receipt.ACCEPTED

    def _accepted(
        self, tx: Connection, row: Any, arrived: Arrived, receipt: Receipt
    ) -> dict[str, Any]:
        """Return what an update changes in its task's row."""
        context = self._engine.context(tx, row.run)
        cap = context.runfile.clients.max_samples
        facts = UpdateFacts(
            samples=min(arrived.samples, cap) if cap else arrived.samples,
            metrics=arrived.metrics,
            plan=Plan.from_json(row.spec["plan"]),
            bits=arrived.found.widths,
            distances=arrived.found.distances,
        )
        return {
            "task": row.id,
            "status": receipt.value,
            "update": arrived.digest,
            "spec": {**row.spec, "receipt": receipt.value},
            "update_bytes": arrived.size,
            "bytes_up": row.bytes_up + arrived.bytes_up,
            "scalars": context.algorithm.measure(facts),
            "metrics": dict(arrived.metrics),
            "seconds": arrived.seconds,
            "restarted": arrived.restarted,
            "ended": self._engine.clock.wall(),
        }

    def reject(self, task_id: str, reason: str) -> None:
        """Close a task whose update cannot be counted; the round goes on without it."""
        with self._engine.transition() as tx:
            self._end(tx, task_id, "failed", reason, {}, 0.0)
        self._engine.changed()

    def report_result(
        self, client: str, task_id: str, metrics: Mapping[str, float], seconds: float
    ) -> bool:
        """End an evaluation or a finish task; return whether it was reported before."""
        with self._engine.transition() as tx:
            row = self._row(tx, client, task_id)
            if row.kind == "train":
                raise ProtocolError(f"task {task_id} wants an update, not a report of metrics")
            known = self._end(tx, task_id, "done", "", metrics, seconds)
        self._engine.changed()
        return known

    def report_failure(
        self, client: str, task_id: str, code: str, message: str, *, permanent: bool
    ) -> bool:
        """End a task that failed on the device; return whether it was reported before."""
        with self._engine.transition() as tx:
            row = self._row(tx, client, task_id)
            if permanent:
                tx.execute(
                    update(members)
                    .where(members.c.run == row.run, members.c.client == client)
                    .values(excluded=f"{code}: {message}")
                )
                log.warning("client_excluded", run=row.run, client=client, code=code)
            elif row.kind == "finish" and row.status == "offered":
                # It was not taken since its last report, which comes again: its answer was lost.
                return True
            elif self._may_try_again(row):
                # Nobody else can make this client's model: it is offered again.
                spec = {**row.spec, "failures": row.spec.get("failures", 0) + 1}
                tx.execute(
                    update(tasks).where(tasks.c.id == task_id).values(status="offered", spec=spec)
                )
                return False
            known = self._end(tx, task_id, "failed", f"{client}: {code}: {message}", {}, 0.0)
        self._engine.changed()
        return known

    def _may_try_again(self, row: Any) -> bool:
        tries = row.spec.get("failures", 0) + 1
        return bool(row.kind == "finish" and row.status == "taken" and tries < FINISH_TRIES)

    def _end(
        self,
        tx: Connection,
        task_id: str,
        status: str,
        reason: str,
        metrics: Mapping[str, float],
        seconds: float,
    ) -> bool:
        """End an open task; return whether it had ended before."""
        row = tx.execute(select(tasks).where(tasks.c.id == task_id)).first()
        if row is None or row.status not in ("offered", "taken"):
            return True
        tx.execute(
            update(tasks)
            .where(tasks.c.id == task_id)
            .values(
                status=status,
                reason=reason,
                metrics=dict(metrics),
                seconds=seconds,
                ended=self._engine.clock.wall(),
            )
        )
        fields = {"reason": reason} if reason else {}
        log.info("task_ended", run=row.run, client=row.client, status=status, **fields)
        return False

    def _row(self, tx: Connection, client: str, task_id: str) -> Any:
        row = tx.execute(select(tasks).where(tasks.c.id == task_id)).first()
        if row is None or row.client != client:
            raise UnknownTaskError(
                f"client {client!r} has no task {task_id!r}; is it from another server's run?"
            )
        return row
