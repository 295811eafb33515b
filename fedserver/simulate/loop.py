"""Drives the engine and the clients in turn, on one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from structlog.stdlib import get_logger

from fedserver.errors import SimulationError
from fedserver.rounds import housekeeping
from fedserver.rounds.engine import Engine
from fedserver.rounds.jobs import HeldOutJob, Job, PrepareJob, RunModelJob, note_failure
from fedserver.rounds.tasks import Arrived, Receipt, TaskDesk, Ticket
from fedserver.rounds.updates import check_update
from fedserver.simulate.clients import Clients, Work
from fedserver.simulate.progress import Closed, Watcher
from fedserver.storage.payloads import PayloadStore
from fedserver.storage.schema import rounds, runs, tasks
from fedserver.storage.trouble import disk_trouble
from motley.errors import MotleyError, UpdateError
from motley.failures import is_permanent
from motley.seeding import derive
from motley.task import TaskKind, TaskSpec

if TYPE_CHECKING:
    from motley.execution.executor import Outcome

log = get_logger()

BATCHES = 4
"""Batches whose tasks are taken and put on record in one go, where clients train together: what one
trained is written while the next one trains, and the record is asked less often."""


class Loop:
    """Moves one run on until it ends; works from the record alone, like the server's driver."""

    def __init__(
        self,
        engine: Engine,
        payloads: PayloadStore,
        clients: Clients,
        models: RunModelJob,
        *,
        run_id: str,
        finished: Path | None,
        batch: int,
        watcher: Watcher,
    ) -> None:
        """Take what a run needs.

        Args:
            engine: over the open record.
            payloads: the data directory's files.
            clients: the devices.
            models: does the server's work with models.
            run_id: the run; the only one that is not over.
            finished: folder of the clients' finished models; None: they are not kept.
            batch: tasks that are done at the same time.
            watcher: hears what happens.
        """
        self._engine, self._payloads, self._desk = engine, payloads, TaskDesk(engine)
        self._clients, self._models, self._run_id = clients, models, run_id
        self._finished, self._batch, self._watcher = finished, batch, watcher
        self._room = batch if batch == 1 else BATCHES * batch
        self._waiting: deque[str] = deque()
        self._seen = 0
        self.trained = 0
        """Training tasks done."""

    def wake(self, clients: Iterable[str]) -> None:
        """Note clients that have new tasks.

        Who waits yet is put in order anew: a round that closed leaves some waiting whose task is
        over, and they must not come before those that answer first in the next one.
        """
        names = set(clients)
        if names:
            self._waiting = deque(self._in_order(sorted(names.union(self._waiting))))

    def _in_order(self, names: list[str]) -> list[str]:
        """Return clients in the order in which they answer: by name, or drawn where some are left
        out.

        A round that gives out more tasks than it counts takes those that answer first. In order of
        name these would always be the same clients.
        """
        with self._engine.database.connect() as tx:
            rules = self._engine.context(tx, self._run_id).runfile
            current = tx.execute(
                select(rounds).where(rounds.c.run == self._run_id, rounds.c.status == "open")
            ).first()
        if current is None or current.kind != "train" or rules.clients.over_select == 1:
            return names
        place = (rules.run.seed, "answers", current.round, current.attempt)
        return sorted(names, key=lambda name: derive(*place, name))

    def run(self) -> None:
        """Move the run on until nothing is left to do.

        Raises:
            SimulationError: the run can never go on.
            OSError, StorageError: the disk refused; a later start goes on here.
        """
        self._payloads.suspect(self._payloads.stored())
        with self._engine.database.connect() as tx:
            ended = rounds.c.status.in_(("closed", "abandoned"))
            newest = select(func.max(rounds.c.id)).where(rounds.c.run == self._run_id, ended)
            self._seen = tx.scalar(newest) or 0
        while True:
            job = self._engine.tick()
            if job is not None:
                self._perform(job)
                continue
            self._tell()
            work = self._next()
            if work:
                self._answer(work)
            elif not self._waiting and not self._find_tasks():
                return

    # --- the server's part -------------------------------------------------------------------

    def _perform(self, job: Job) -> None:
        """Do a job and commit its result, or its failure."""
        try:
            if isinstance(job, PrepareJob | HeldOutJob):
                result: Any = job.run(self._payloads, self._models)
            else:
                result = job.run(self._payloads)
            self._engine.apply(job, result)
        except Exception as error:
            if disk_trouble(error):
                raise
            note_failure(job, error)
            self._engine.failed(job, error)

    def _tell(self) -> None:
        """Say which rounds ended, and remove what they leave over."""
        with self._engine.database.connect() as tx:
            ended = tx.execute(
                select(rounds)
                .where(rounds.c.run == self._run_id, rounds.c.id > self._seen)
                .where(rounds.c.status.in_(("closed", "abandoned")))
                .order_by(rounds.c.id)
            ).all()
            counts = {
                row.id: tx.scalar(
                    select(func.count()).where(
                        tasks.c.round_id == row.id, tasks.c.status.in_(("counted", "done"))
                    )
                )
                for row in ended
            }
        for row in ended:
            self._seen = row.id
            self._watcher.closed(Closed.of(row, counts[row.id] or 0))
        if ended:
            while housekeeping.judge(self._engine, self._payloads):
                self._payloads.remove_doomed()
            self._payloads.remove_doomed()

    # --- the clients' part -------------------------------------------------------------------

    def _next(self) -> list[TaskSpec]:
        """Take the tasks that are worked on together: no more than can still count."""
        if not self._waiting:
            return []
        found: list[TaskSpec] = []
        room = min(self._room, self._missing())
        while self._waiting and len(found) < room:
            many = min(room - len(found), len(self._waiting))
            names = [self._waiting.popleft() for _ in range(many)]
            found += [task for task in self._desk.next_tasks(names) if task is not None]
        return found

    def _missing(self) -> int:
        """Return how many answers the open round still wants; any number when none is open."""
        with self._engine.database.connect() as tx:
            row = tx.execute(
                select(rounds.c.id, rounds.c.goal).where(
                    rounds.c.run == self._run_id, rounds.c.status == "open"
                )
            ).first()
            if row is None:
                return self._room
            arrived = tx.scalar(
                select(func.count()).where(
                    tasks.c.round_id == row.id, tasks.c.status.in_(("accepted", "done"))
                )
            )
        return int(row.goal) - int(arrived or 0)

    def _find_tasks(self) -> bool:
        """Take up open tasks from the record: after a start, and what is offered again."""
        self.wake(self._engine.tasks_in_hand())
        if self._waiting:
            return True
        with self._engine.database.connect() as tx:
            row = tx.execute(select(runs).where(runs.c.id == self._run_id)).one()
        if row.status in ("preparing", "waiting", "running"):
            raise SimulationError(f"run {row.name} ({row.id}) cannot go on: {row.reason}")
        return False

    def _answer(self, specs: Sequence[TaskSpec]) -> None:
        """Let clients do tasks, and put what comes of them on record."""
        self._desk.count_downloads({t.task_id: t.payload_size for t in specs if t.payload_size})
        with self._payloads.scratch("answers") as place:
            work = [self._work(task, place.parent) for task in specs]
            updates: list[tuple[Work, Outcome]] = []
            for one, outcome in zip(work, self._clients.do(work, self._batch), strict=True):
                if isinstance(outcome, Exception):
                    self._fail(one.task, outcome)
                elif one.task.kind is TaskKind.TRAIN:
                    updates.append((one, outcome))
                else:
                    told = {} if outcome.withheld else outcome.metrics  # as a device does
                    self._desk.report_result(
                        one.task.client, one.task.task_id, told, outcome.seconds
                    )
            self.trained += len(updates)
            self._send(updates)
        for task in specs:
            self._watcher.answered(task)

    def _work(self, task: TaskSpec, scratch: Path) -> Work:
        digest = task.payload_sha256.hex()
        models = self._finished or scratch
        return Work(
            task=task,
            broadcast=self._payloads.path(digest) if digest else None,
            update=scratch / f"{task.client}.update",
            model=models / f"{task.client}.motley",
        )

    def _send(self, updates: Sequence[tuple[Work, Outcome]]) -> None:
        """Check updates and put them on record, as those that came over the network."""
        ticket: Ticket | Receipt = Receipt.LATE
        arrived = []
        for work, outcome in updates:
            task, info = work.task, outcome.payload
            assert info is not None
            digest = info.sha256.hex()
            if isinstance(ticket, Receipt):
                ticket = self._desk.begin_upload(task.client, task.task_id, digest)
            if isinstance(ticket, Receipt):
                continue
            # All tasks in hand are of one round: they differ in client and plan alone.
            ticket = replace(ticket, task_id=task.task_id, client=task.client, plan=task.plan)
            try:
                found = check_update(work.update, ticket)
            except UpdateError as error:
                self._desk.reject(task.task_id, str(error))
                continue
            self._payloads.adopt(work.update, digest)
            arrived.append(
                Arrived(
                    task_id=task.task_id,
                    digest=digest,
                    size=info.size,
                    samples=outcome.samples,
                    metrics=outcome.metrics,
                    seconds=outcome.seconds,
                    restarted=outcome.restarted,
                    bytes_up=info.size,
                    found=found,
                )
            )
        receipts = self._desk.accept_all(arrived) if arrived else []
        for sent, receipt in zip(arrived, receipts, strict=True):
            if receipt is not Receipt.ACCEPTED:
                self._payloads.suspect([sent.digest])

    def _fail(self, task: TaskSpec, error: Exception) -> None:
        """Put a failure on record, as a device would report it."""
        if disk_trouble(error):
            raise error
        code = error.code if isinstance(error, MotleyError) else "crash"
        if code == "crash":
            log.error("task_crashed", client=task.client, round=task.round, exc_info=error)
        self._desk.report_failure(
            task.client,
            task.task_id,
            code,
            str(error) if code != "crash" else repr(error),
            permanent=is_permanent(code, may_restart=task.fresh_if_lost),
        )
