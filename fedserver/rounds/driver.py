"""Drives the engine: runs due transitions, and heavy work on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from structlog.stdlib import get_logger

from fedserver.model_process import end_children
from fedserver.rounds import housekeeping
from fedserver.rounds.engine import Engine
from fedserver.rounds.jobs import Job, note_failure
from fedserver.storage.database import DatabaseThread
from fedserver.storage.payloads import PayloadStore
from fedserver.storage.trouble import disk_trouble
from motley.allocator import give_back

log = get_logger()
T = TypeVar("T")

IDLE_SECONDS = 10.0
"""The engine is asked at least so often, and the time left of open rounds is noted."""

TIDY_SECONDS = 1.0
"""Between two looks for payloads of no use: in short rounds clients would wait for each of them."""

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
"""When the disk refused something it is tried again after 0.5, 1, 2 ... up to 30 s."""


class Driver:
    """One asyncio task that moves runs on; `wake` may be called from any thread."""

    def __init__(self, engine: Engine, database: DatabaseThread, payloads: PayloadStore) -> None:
        self._engine, self._database, self._payloads = engine, database, payloads
        self._work = ThreadPoolExecutor(max_workers=1, thread_name_prefix="work")
        self._loop = asyncio.get_running_loop()
        self._due = asyncio.Event()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._watchers: set[asyncio.Event] = set()
        self._may_have_work = set(engine.tasks_in_hand())
        self._failures = 0
        self._next_try = engine.clock.monotonic()
        self._tidied = float("-inf")

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
                _end(self._waiting[name])
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
        # Ten thousand may wait: a future and a timer take a fifth of what `wait_for` does.
        waiting = self._loop.create_future()
        self._waiting[client] = waiting
        timer = self._loop.call_later(seconds, _end, waiting)
        try:
            await waiting
        finally:
            timer.cancel()
            if self._waiting.get(client) is waiting:
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
        """Move runs on until cancelled.

        Errors of disk and database are waited out: what could not be done is tried again.
        """
        # What a crash left over is judged like all that may have become of no use.
        self._payloads.suspect(await self._on_work_thread(self._payloads.stored))
        saved = self._loop.time()
        while True:
            self._due.clear()
            try:
                if await self._move():
                    continue
                if self._tidy_in() <= 0:
                    self._tidied = self._loop.time()
                    await self._tidy()
                if self._loop.time() - saved >= IDLE_SECONDS:
                    await self._database(self._engine.save_time_left)
                    saved = self._loop.time()
            except (OSError, SQLAlchemyError) as error:
                self._hold(error)
            await self._wait()

    async def _move(self) -> bool:
        """Make what transitions are due, and do the job that stands next; False when none does."""
        job = await self._database(self._engine.tick)
        if job is None:
            self._release()
        elif self._engine.clock.monotonic() >= self._next_try:
            await self._do(job)
            return True
        return False

    async def _wait(self) -> None:
        """Return when something changed, a deadline is due, or it is time to try again."""
        if self._failures:
            seconds = max(0.01, self._next_try - self._engine.clock.monotonic())
        else:
            left = await self._database(self._engine.seconds_to_next_deadline)
            seconds = IDLE_SECONDS if left is None else min(IDLE_SECONDS, left + 0.01)
            if self._engine.unkept or self._payloads.has_suspects():
                seconds = min(seconds, max(0.0, self._tidy_in()))
        waiting = asyncio.ensure_future(self._due.wait())
        try:
            await asyncio.wait({waiting}, timeout=seconds)
        finally:
            waiting.cancel()

    async def _do(self, job: Job) -> None:
        """Run a job on the work thread and commit its result, or its failure.

        A job that the disk refused is no failure of the run: it stands next again.
        """
        try:
            result = await self._on_work_thread(job.run, self._payloads)
            await self._database(self._engine.apply, job, result)
        except Exception as error:
            if disk_trouble(error):
                raise
            note_failure(job, error)
            await self._database(self._engine.failed, job, error)
        self._release()

    def _hold(self, error: Exception) -> None:
        """Say why nothing moves, and wait longer each time."""
        reason = disk_trouble(error) or f"the server's database fails: {error}; it is tried again"
        self._engine.hold(reason)
        now = self._engine.clock.monotonic()
        if self._failures and now < self._next_try:
            return  # woken before its time
        seconds = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(self._failures, 10))
        self._failures, self._next_try = self._failures + 1, now + seconds
        log.error("disk_trouble", reason=reason, retry_in=seconds)

    def _release(self) -> None:
        if self._failures:
            log.info("disk_works_again", failures=self._failures)
        self._failures = 0
        self._engine.hold("")

    def _tidy_in(self) -> float:
        """Return the seconds until payloads may be looked at again."""
        return self._tidied + TIDY_SECONDS - self._loop.time()

    async def _tidy(self) -> None:
        """Remove payloads and partial uploads that nothing needs any more."""
        engine, payloads = self._engine, self._payloads
        if not (engine.unkept or payloads.has_suspects()):
            return
        while await self._database(housekeeping.judge, engine, payloads):
            await self._on_work_thread(payloads.remove_doomed)
        removed = await self._on_work_thread(payloads.remove_doomed)
        begun = await self._on_work_thread(payloads.idle_incoming)
        over = await self._database(housekeeping.over, engine, begun)
        await self._on_work_thread(payloads.forget_incoming, over)
        if removed or over:
            log.info("housekeeping", payloads=removed, partial_uploads=len(over))
        if removed and await self._database(engine.seconds_to_next_deadline) is None:
            # No round is open: what transfers and folds held is not needed soon.
            await self._on_work_thread(give_back)

    async def _on_work_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await self._loop.run_in_executor(self._work, function, *args)

    def close(self) -> None:
        """End the work thread; a child that trains or evaluates models is ended too."""
        end_children()
        self._work.shutdown(wait=True, cancel_futures=True)


def _end(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
