"""Drives the engine: runs due transitions, and heavy work on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from structlog.stdlib import get_logger

from fedserver.model_process import end_children
from fedserver.rounds.engine import Engine
from fedserver.rounds.jobs import Job
from fedserver.storage.database import DatabaseThread
from fedserver.storage.payloads import PayloadStore

log = get_logger()

IDLE_SECONDS = 10.0
"""The engine is asked at least so often, and the time left of open rounds is noted."""


class Driver:
    """One asyncio task that moves runs on; `wake` may be called from any thread."""

    def __init__(self, engine: Engine, database: DatabaseThread, payloads: PayloadStore) -> None:
        self._engine, self._database, self._payloads = engine, database, payloads
        self._work = ThreadPoolExecutor(max_workers=1, thread_name_prefix="work")
        self._loop = asyncio.get_running_loop()
        self._due = asyncio.Event()
        self._waiting: dict[str, asyncio.Event] = {}
        self._watchers: set[asyncio.Event] = set()
        self._may_have_work = set(engine.tasks_in_hand())

    def wake(self, clients: Iterable[str]) -> None:
        """Note that something changed; `clients` have new tasks. Safe from any thread."""
        names = tuple(clients)
        # A closed loop means that the server is going down; the record holds everything.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake, names)

    def _wake(self, names: tuple[str, ...]) -> None:
        self._due.set()
        self._may_have_work.update(names)
        for name in names:
            if name in self._waiting:
                self._waiting[name].set()
        for watcher in self._watchers:
            watcher.set()

    # --- for check-ins -----------------------------------------------------------------------

    def may_have_work(self, client: str) -> bool:
        """Return whether it is worth asking the database for this client's task."""
        return client in self._may_have_work

    def looking(self, client: str) -> None:
        """Note that the database is about to be asked for a client's task.

        Before it is, not after: a task that is offered meanwhile puts the client back.
        """
        self._may_have_work.discard(client)

    def found(self, client: str) -> None:
        """Note that a client has a task, which it may ask for again."""
        self._may_have_work.add(client)

    async def wait_for_work(self, client: str, seconds: float) -> None:
        """Return when a task was offered to the client, or after `seconds`."""
        if client in self._may_have_work:
            return  # offered since the caller looked
        event = asyncio.Event()
        self._waiting[client] = event
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(event.wait(), seconds)
        finally:
            if self._waiting.get(client) is event:
                del self._waiting[client]

    @contextlib.contextmanager
    def watching(self) -> Iterator[asyncio.Event]:
        """Give an event that is set at every change."""
        event = asyncio.Event()
        self._watchers.add(event)
        try:
            yield event
        finally:
            self._watchers.discard(event)

    # --- the loop ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Move runs on until cancelled."""
        saved = self._loop.time()
        while True:
            self._due.clear()
            job = await self._database(self._engine.tick)
            if job is not None:
                await self._do(job)
                continue
            left = await self._database(self._engine.seconds_to_next_deadline)
            seconds = IDLE_SECONDS if left is None else min(IDLE_SECONDS, left + 0.01)
            waiting = asyncio.ensure_future(self._due.wait())
            try:
                await asyncio.wait({waiting}, timeout=seconds)
            finally:
                waiting.cancel()
            if self._loop.time() - saved >= IDLE_SECONDS:
                await self._database(self._engine.save_time_left)
                saved = self._loop.time()

    async def _do(self, job: Job) -> None:
        """Run a job on the work thread and commit its result, or its failure."""
        try:
            result = await self._loop.run_in_executor(self._work, job.run, self._payloads)
            await self._database(self._engine.apply, job, result)
        except Exception as error:
            log.exception("job_failed", job=type(job).__name__, run=job.context.id)
            await self._database(self._engine.failed, job, error)

    def close(self) -> None:
        """End the work thread; a child that trains or evaluates models is ended too."""
        end_children()
        self._work.shutdown(wait=True, cancel_futures=True)
