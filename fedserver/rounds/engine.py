"""The engine: runs move through their states here, one transaction for each transition.

    queued -> preparing -> waiting -> running -> finished
                 |                     |  ^
               failed               paused -> (resume) -> queued        stopped at any point

A run's rounds move opening -> open -> closing -> closed, or end abandoned below their minimum.
`tick` makes every transition that is due and returns the heavy work that stands next
(`jobs.py`); whoever drives the engine runs it on another thread and hands the result to
`apply`. Both work from the record alone, so that a start after a crash goes on where it was.

All methods run on the database thread (storage/database.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy import Engine as SqlEngine
from structlog.stdlib import get_logger

from fedserver.rounds import closing, opening, schedule
from fedserver.rounds.clock import Clock, SystemClock
from fedserver.rounds.context import RunContext
from fedserver.rounds.exclusion import revoked_names
from fedserver.rounds.finding import find_run
from fedserver.rounds.jobs import FoldJob, HeldOutJob, Job, OpenJob, PrepareJob
from fedserver.rounds.membership import frozen, refusal
from fedserver.rounds.presence import Arrival, Presence
from fedserver.storage.schema import clients, members, rounds, runs, tasks
from fedserver.storage.trouble import disk_trouble
from motley.errors import MotleyError, did_you_mean

log = get_logger()

ACTIVE = ("preparing", "waiting", "running")
ENDED = ("finished", "stopped", "failed")
MOST_CONTEXTS = 16
"""Parsed runs that are kept in memory."""
MOST_NAMED = 20
"""Clients whose refusal is told in a waiting run's reason; of more, how many there are."""
_WAITING = select(runs.c.id, runs.c.name, runs.c.status, runs.c.reason).where(
    runs.c.status.in_(("waiting", "running"))
)


class Engine:
    """Runs, rounds and members of one server."""

    def __init__(
        self,
        database: SqlEngine,
        presence: Presence,
        *,
        payload_path: Callable[[str], Path],
        mappings: Mapping[str, str],
        clock: Clock | None = None,
        notify: Callable[[Iterable[str]], None] = lambda clients: None,
        timed: bool = True,
    ) -> None:
        """Make an engine over an open database.

        Args:
            database: records.
            presence: who is connected.
            payload_path: where the payload of a digest (hex) lies.
            mappings: `module:object` by workload name, for the server's own use.
            clock: time.
            notify: called after a transaction with the clients that have new work; an empty
                call says that something changed for the driver and for watchers.
            timed: whether rounds have deadlines; a simulation's clients take no time.
        """
        self.database, self.presence = database, presence
        self.clock = clock or SystemClock()
        self.payload_path, self._notify, self._timed = payload_path, notify, timed
        self.mappings: Mapping[str, str] = dict(mappings)
        self._contexts: dict[str, RunContext] = {}
        self.deadlines: dict[int, float] = {}
        """Monotonic deadline of each open round; the database holds the seconds left."""
        self.phases: dict[int, float] = {}
        """Monotonic begin of each round's present phase, as far as this process saw it."""
        self.unkept: set[str] = set()
        """Runs of which rounds ended since housekeeping last looked (housekeeping.py)."""
        self.trouble = ""
        """Why the active run does not go on just now, when the server's disk is the reason."""
        self.started = self.clock.monotonic()
        """Clients known before are still expected back for a while after this."""

    # --- clients -----------------------------------------------------------------------------

    def enrol(self, *arrivals: Arrival) -> None:
        """Put clients on record, or renew what they said of themselves."""
        with self.database.begin() as tx:
            for arrival in arrivals:
                self._enrol(tx, arrival)
        self._notify(())

    def _enrol(self, tx: Connection, arrival: Arrival) -> None:
        now = self.clock.wall()
        values = {
            "session": arrival.session,
            "profile": {**vars(arrival.profile), "labels": dict(arrival.profile.labels)},
            "capabilities": vars(arrival.capabilities),
            "last_seen": now,
            # Who is let in is not put aside. The one of this name that was had another session.
            "set_aside_until": 0.0,
            "set_aside": "",
        }
        known = tx.execute(update(clients).where(clients.c.name == arrival.name).values(**values))
        if known.rowcount == 0:
            tx.execute(insert(clients).values(name=arrival.name, first_seen=now, **values))
            log.info("client_enrolled", client=arrival.name, tier=arrival.profile.tier)

    @contextmanager
    def transition(self) -> Iterator[Connection]:
        """Give one transaction; when it fails, what it changed in memory is taken back too."""
        deadlines, phases = dict(self.deadlines), dict(self.phases)
        try:
            with self.database.begin() as tx:
                yield tx
        except BaseException:
            self.deadlines, self.phases = deadlines, phases
            raise

    # --- moving on ---------------------------------------------------------------------------

    def tick(self) -> Job | None:
        """Make every transition that is due; return the heavy work that stands next.

        A run whose record cannot be worked with is put aside, so that it never takes the server
        and the other runs with it. An error of the disk is no fault of a run, and is raised.
        """
        try:
            return self._tick()
        except Exception as error:
            if disk_trouble(error):
                raise
            log.exception("run_broken")
            with self.transition() as tx:
                ordered = select(runs).order_by(runs.c.sequence)
                row = (
                    tx.execute(ordered.where(runs.c.status.in_(ACTIVE))).first()
                    or tx.execute(ordered.where(runs.c.status == "queued")).first()
                )
                if row is None:
                    raise
                closing.abandon_open(self, tx, row.id, "the run was put aside")
                self.set_status(tx, row.id, "paused", f"internal error: {error!r}")
            self._notify(())
            return None

    def _tick(self) -> Job | None:
        while True:
            woken: set[str] = set()
            with self.transition() as tx:
                row = self._active(tx)
                if row is None:
                    return None
                if row.status == "preparing":
                    return PrepareJob(
                        context=self.context(tx, row.id),
                        init=row.init,
                        mappings=self.mappings,
                    )
                moved, job = False, None
                if row.status == "waiting":
                    moved = self._freeze(tx, row, woken)
                else:
                    moved, job = schedule.step(self, tx, row, woken)
            if woken or moved:
                self._notify(woken)
            if not moved:
                return job

    def apply(self, job: Job, result: Any) -> None:
        """Commit what a job returned."""
        woken: set[str] = set()
        with self.transition() as tx:
            if isinstance(job, PrepareJob):
                self._prepared(tx, job.context.id, result)
            elif isinstance(job, OpenJob):
                opening.opened(self, tx, job, result, woken)
            elif isinstance(job, FoldJob):
                closing.folded(self, tx, job, *result)
            elif isinstance(job, HeldOutJob):
                closing.evaluated(self, tx, job.round_id, result)
        self._notify(woken)

    def failed(self, job: Job, error: Exception) -> None:
        """Put a job's failure on record: a run that cannot be prepared fails, others pause.

        A round that cannot be folded is abandoned: after `resume` it is tried with a new cohort.
        """
        status = "failed" if isinstance(job, PrepareJob) else "paused"
        reason = str(error) or repr(error)
        with self.transition() as tx:
            if isinstance(job, HeldOutJob):
                # The clients' figures stand; nobody's model hangs on the server's own.
                closing.evaluated(self, tx, job.round_id, {}, f"held-out set: {reason}")
                self._notify(())
                return
            found = tx.scalar(select(runs.c.status).where(runs.c.id == job.context.id))
            if found in ACTIVE:  # not stopped meanwhile
                if isinstance(job, FoldJob):
                    closing.abandon_open(self, tx, job.context.id, reason)
                self.set_status(tx, job.context.id, status, reason, ended=status == "failed")
        self._notify(())

    def hold(self, reason: str) -> None:
        """Note why nothing moves just now, "" when it moves again; in memory alone, since the
        disk may take no record of it."""
        if reason != self.trouble:
            self.trouble = reason
            self._notify(())

    def elapsed(self, round_id: int, since: float) -> float:
        """Return the seconds of a round's present phase, which began at `since` (wall clock).

        The wall clock counts only over a restart; it may have jumped.
        """
        if round_id in self.phases:
            return self.clock.monotonic() - self.phases[round_id]
        return max(0.0, self.clock.wall() - since)

    def seconds_to_next_deadline(self) -> float | None:
        """Return how long until an open round's deadline; None when none is open."""
        if not self.deadlines:
            return None
        return max(0.0, min(self.deadlines.values()) - self.clock.monotonic())

    def recover(self) -> None:
        """Take up open rounds after a start: deadlines go on with the time that was left."""
        self.started = self.clock.monotonic()
        with self.transition() as tx:
            self.unkept.update(tx.scalars(select(runs.c.id)))
            for row in tx.execute(select(rounds).where(rounds.c.status == "open")):
                self.set_deadline(row.id, row.seconds_left)

    def set_deadline(self, round_id: int, seconds: float) -> None:
        """Let an open round end in so many seconds, where time counts."""
        if self._timed:
            self.deadlines[round_id] = self.clock.monotonic() + seconds

    def save_time_left(self) -> None:
        """Note how much time open rounds have left; called now and then, and at the end."""
        now = self.clock.monotonic()
        with self.database.begin() as tx:
            for round_id, deadline in self.deadlines.items():
                tx.execute(
                    update(rounds)
                    .where(rounds.c.id == round_id)
                    .values(seconds_left=max(0.0, deadline - now))
                )

    # --- shared with the desks, schedule.py and view.py ---------------------------------------

    def context(self, tx: Connection, run_id: str) -> RunContext:
        """Return the parsed run; cached once it is prepared."""
        if run_id not in self._contexts:
            found = RunContext.from_row(tx.execute(select(runs).where(runs.c.id == run_id)).one())
            if found.model is None:
                return found
            while len(self._contexts) >= MOST_CONTEXTS:
                self._contexts.pop(next(iter(self._contexts)))
            self._contexts[run_id] = found
        return self._contexts[run_id]

    def find(self, tx: Connection, run: str) -> Any:
        """Return the row of the run that an operator means."""
        return find_run(tx, run)

    def forget(self, run_id: str) -> None:
        """Read a run's file anew when it is next needed."""
        self._contexts.pop(run_id, None)

    def changed(self) -> None:
        """Say that something changed, for the driver and for watchers."""
        self._notify(())

    def set_status(
        self, tx: Connection, run_id: str, status: str, reason: str, *, ended: bool = False
    ) -> None:
        """Move a run to another status and log it."""
        values: dict[str, Any] = {"status": status, "reason": reason}
        values["ended"] = self.clock.wall() if ended else None
        tx.execute(update(runs).where(runs.c.id == run_id).values(**values))
        log.info(f"run_{status}", run=run_id, **({"reason": reason} if reason else {}))

    # --- transitions of runs -----------------------------------------------------------------

    def _active(self, tx: Connection) -> Any:
        """Return the run whose turn it is, starting the next queued one when there is none."""
        ordered = select(runs).order_by(runs.c.sequence)
        row = tx.execute(ordered.where(runs.c.status.in_(ACTIVE))).first()
        if row is not None:
            return row
        row = tx.execute(ordered.where(runs.c.status == "queued")).first()
        if row is None:
            return None
        status = "preparing"
        if row.model:
            enrolled = tx.scalar(
                select(func.count()).select_from(members).where(members.c.run == row.id)
            )
            status = "running" if enrolled else "waiting"
        self.set_status(tx, row.id, status, "")
        return tx.execute(select(runs).where(runs.c.id == row.id)).one()

    def _prepared(self, tx: Connection, run_id: str, result: Mapping[str, Any]) -> None:
        tx.execute(
            update(runs)
            .where(runs.c.id == run_id, runs.c.status == "preparing")
            .values(model=dict(result), state=result["sha256"], status="waiting")
        )

    def _freeze(self, tx: Connection, row: Any, woken: set[str]) -> bool:
        """Fix a waiting run's clients when as many as it expects are there.

        Clients that the run cannot take are woken, so that their owners are told at once.
        """
        context = self.context(tx, row.id)
        here = self.presence.here(self.clock.monotonic())
        for name in revoked_names(tx) & here.keys():
            del here[name]  # shut out a moment ago, and its connection not ended yet
        refused = {name: why for name, a in here.items() if (why := refusal(context, a))}
        able = [arrival for name, arrival in here.items() if name not in refused]
        expected = context.runfile.clients.expected
        if len(able) < expected:
            reason = f"{len(able)} of {expected} clients are here"
            named = list(refused.items())[:MOST_NAMED]
            reason += "".join(f"; {name}: {why}" for name, why in named)
            if len(refused) > len(named):
                reason += f"; and {len(refused) - len(named)} more"
            if reason != row.reason:
                tx.execute(update(runs).where(runs.c.id == row.id).values(reason=reason))
                log.info("run_waiting", run=row.id, reason=reason)
                woken.update(refused)
            return False
        tx.execute(insert(members), [frozen(context, arrival) for arrival in able])
        tx.execute(update(runs).where(runs.c.id == row.id).values(started=self.clock.wall()))
        self.set_status(tx, row.id, "running", "")
        return True

    def notices(self, names: Sequence[str]) -> list[list[str]]:
        """Return for each client why the run that waits for clients cannot take it."""
        with self.database.connect() as tx:
            row = tx.execute(_WAITING).first()
            if row is None or not row.reason:
                return [[] for _ in names]
            return [self._notices(tx, row, name) for name in names]

    def _notices(self, tx: Connection, row: Any, name: str) -> list[str]:
        arrival = self.presence.get(name)
        if arrival is None:
            return []
        member = select(members.c.client).where(
            members.c.run == row.id, members.c.client == name, members.c.excluded == ""
        )
        if row.status == "running" and tx.execute(member).first() is None:
            return []
        try:
            why = refusal(self.context(tx, row.id), arrival)
        except MotleyError:
            return []  # the run itself is broken: tick puts it aside
        tiers = [tier.name for tier in self.context(tx, row.id).runfile.tiers]
        if why:
            return [f"run {row.name} cannot take this client: {why}"]
        named = arrival.profile.tier
        if row.status == "waiting" and named and named not in tiers:
            only = ", ".join(tiers) + did_you_mean(named, tiers)
            return [f"run {row.name} has no tier {named!r}, only {only}"]
        return []

    def tasks_in_hand(self) -> dict[str, set[str]]:
        """Return the ids of open tasks by client: what check-ins are answered with."""
        found: dict[str, set[str]] = {}
        with self.database.connect() as tx:
            query = select(tasks.c.id, tasks.c.client).where(
                tasks.c.status.in_(("offered", "taken"))
            )
            for task_id, client in tx.execute(query):
                found.setdefault(cast(str, client), set()).add(task_id)
        return found
