"""What operators do with runs: submit, stop, resume, extend."""

from __future__ import annotations

import uuid
from pathlib import Path

from sqlalchemy import Connection, delete, func, insert, select, update
from structlog.stdlib import get_logger

from fedserver.errors import RunStateError
from fedserver.rounds import closing, housekeeping, schedule
from fedserver.rounds.engine import ENDED, Engine
from fedserver.rounds.exclusion import forgive, keep_out
from fedserver.rounds.private import refuse_extension, refuse_unplannable
from fedserver.storage.schema import members, rounds, runs, tasks
from motley import plugins
from motley.errors import RunFileError, did_you_mean
from motley.runfile import parse

log = get_logger()


class RunDesk:
    """The operator-facing part of the engine. Methods run on the database thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def submit(self, text: str, source: str) -> str:
        """Queue a run and return its id; raise RunFileError when the file is not valid."""
        runfile = parse(text, source)
        refuse_unplannable(runfile)
        # Told to whoever submits it: when the run's turn comes, nobody may be looking.
        name, known = runfile.workload.name, plugins.available(self._engine.mappings)
        if name not in known:
            raise RunFileError(
                f"{source} is not valid:\n  workload.name: the server has no workload {name!r}"
                f"{did_you_mean(name, known)} (known: {', '.join(sorted(known))}; another one is "
                f"mapped by `fedserver serve --workload {name}=module:object`)"
            )
        run_id = uuid.uuid4().hex[:8]
        with self._engine.database.begin() as tx:
            # Resolved now: later this run would be the newest of its own name.
            initial = self._initial_state(tx, runfile.run.init)
            newest = tx.scalar(select(func.max(runs.c.sequence))) or 0
            tx.execute(
                insert(runs).values(
                    id=run_id,
                    sequence=newest + 1,
                    name=runfile.run.name,
                    runfile=text,
                    init=initial,
                    status="queued",
                    rounds=runfile.run.rounds,
                    submitted=self._engine.clock.wall(),
                )
            )
        log.info("run_submitted", run=run_id, name=runfile.run.name, rounds=runfile.run.rounds)
        self._engine.changed()
        return run_id

    def stop(self, run: str) -> tuple[str, str]:
        """Stop a run for good; what was counted stays. Returns (id, status)."""
        with self._engine.transition() as tx:
            row = self._engine.find(tx, run)
            if row.status in ENDED:
                raise RunStateError(f"run {row.name} ({row.id}) has ended already: {row.status}")
            closing.abandon_open(self._engine, tx, row.id, "the run was stopped")
            self._engine.set_status(tx, row.id, "stopped", "by the operator", ended=True)
        self._engine.changed()
        return row.id, "stopped"

    def resume(self, run: str) -> tuple[str, str]:
        """Put a paused or stopped run back into the queue."""
        with self._engine.database.begin() as tx:
            row = self._engine.find(tx, run)
            if row.status not in ("paused", "stopped", "failed"):
                raise RunStateError(
                    f"run {row.name} ({row.id}) is {row.status}; only paused, stopped or failed "
                    f"runs resume"
                )
            newest = tx.scalar(select(func.max(rounds.c.id))) or 0
            # The operator has seen to whatever kept clients out.
            forgive(tx, row.id)
            keep_out(tx, row.id)
            tx.execute(update(runs).where(runs.c.id == row.id).values(retry_from=newest))
            self._engine.set_status(tx, row.id, "queued", "")
        self._engine.changed()
        return row.id, "queued"

    def extend(self, run: str, more: int) -> tuple[str, str]:
        """Add rounds to a run; one that finished goes on."""
        if more < 1:
            raise RunStateError(f"extend by {more} rounds: expected at least 1")
        with self._engine.database.begin() as tx:
            row = self._engine.find(tx, run)
            refuse_extension(self._engine.context(tx, row.id))
            tx.execute(update(runs).where(runs.c.id == row.id).values(rounds=row.rounds + more))
            status = row.status
            if status == "finished":
                schedule.withdraw_finish_tasks(self._engine, tx, row.id)
                keep_out(tx, row.id)
                status = "queued"
                self._engine.set_status(tx, row.id, status, "")
        self._engine.forget(row.id)
        self._engine.changed()
        return row.id, status

    def remove(self, run: str) -> tuple[str, str, set[str]]:
        """Forget a run that has ended or paused; returns (id, status, digests it named).

        The record goes in one transaction; housekeeping then removes those of the payloads that
        nothing else needs.
        """
        with self._engine.transition() as tx:
            row = self._engine.find(tx, run)
            if row.status not in (*ENDED, "paused"):
                raise RunStateError(
                    f"run {row.name} ({row.id}) is {row.status}; only runs that ended or paused "
                    f"are removed: stop it first"
                )
            digests = housekeeping.digests_of(tx, row)
            for table in (tasks, rounds, members):
                tx.execute(delete(table).where(table.c.run == row.id))
            tx.execute(delete(runs).where(runs.c.id == row.id))
        self._engine.forget(row.id)
        log.info("run_removed", run=row.id, name=row.name)
        self._engine.changed()
        return row.id, "removed", digests

    def _initial_state(self, tx: Connection, init: str) -> str:
        """Return the file that `init` names, "" for none; raise when it is not there."""
        if not init:
            return ""
        path = Path(init)
        if not init.startswith("run:") and not path.is_absolute():
            raise RunFileError(
                f"run.init: {init!r} is a relative path, and the server does not run where you do; "
                f"give an absolute one, or run:NAME"
            )
        if init.startswith("run:"):
            row = self._engine.find(tx, init.removeprefix("run:"))
            if not row.state:
                raise RunFileError(f"run.init: run {row.name} ({row.id}) has no model yet")
            path = self._engine.payload_path(row.state)
        if not path.is_file():
            raise RunFileError(
                f"run.init: {init!r} is not a file on the server; expected a payload file as "
                f"`fedserver fetch` writes it, a safetensors file, or run:NAME"
            )
        return str(path.resolve())
