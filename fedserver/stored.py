"""Runs of a data directory that no server has open: read by the commands themselves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedserver.client import Operator
from fedserver.rounds import view
from fedserver.rounds.engine import Engine
from fedserver.rounds.presence import Presence
from fedserver.rounds.replay import plan_replay
from fedserver.storage.database import lock_directory, open_database
from fedserver.storage.payloads import PayloadStore


class StoredRuns(Operator):
    """What an operator may ask of runs without a server: nothing moves, so reading is all there is.

    The other commands say that no server answers.
    """

    def runs(self) -> list[dict[str, Any]]:
        """Return a summary of every run, the newest first."""
        with self._opened() as (engine, _):
            return view.list_runs(engine)

    def clients(self) -> list[dict[str, Any]]:
        """Return every client."""
        with self._opened() as (engine, _):
            return view.list_clients(engine)

    def show(self, run: str) -> dict[str, Any]:
        """Return one run whole."""
        with self._opened() as (engine, _):
            return view.run_record(engine, run)

    def replay(self, run: str) -> Iterator[dict[str, Any]]:
        """Yield one record a round: recorded and recomputed digest."""
        with self._opened() as (engine, payloads):
            for entry in plan_replay(engine, run):
                yield entry.run(payloads)

    def fetch(self, run: str, number: int, target: Path) -> int:
        """Write a global model to `target` whole or not at all; return its size in bytes."""
        with self._opened() as (engine, payloads):
            digest = view.model_digest(engine, run, number)
            partial = target.with_name(target.name + ".part")
            try:
                shutil.copyfile(payloads.path(digest), partial)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
        return target.stat().st_size

    @contextmanager
    def _opened(self) -> Iterator[tuple[Engine, PayloadStore]]:
        """Open the directory for the time of one question; raise when somebody else has it."""
        lock = lock_directory(self._root)
        try:
            database = open_database(self._root)
            try:
                payloads = PayloadStore(self._root)
                yield (
                    Engine(database, Presence(), payload_path=payloads.path, mappings={}),
                    payloads,
                )
            finally:
                database.dispose()
        finally:
            lock.close()
