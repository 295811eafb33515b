"""Waiting on an event loop: for work that cannot be cut short, and for others that stand still."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator
from typing import TypeVar

T = TypeVar("T")


async def settled(future: asyncio.Future[T]) -> T:
    """Return what file work came to; its end is waited for, however often one is cancelled."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError as error:
        cancelled = error
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({future})
    if not future.cancelled():
        future.exception()  # looked at: nobody else will
    raise cancelled


class Watch:
    """Ends steps of one task that take too long, with one timer for all of them.

    `asyncio.wait_for` makes a task and a timer for each step, which for frames of a stream costs as
    much as the frames.
    """

    def __init__(self, seconds: float) -> None:
        """Watch over steps of the current task that may take up to `seconds` each."""
        self._seconds, self._since = seconds, 0.0
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[object] = task
        self._waits = self._expired = False
        self._asked = self._cancellations()
        self._timer: asyncio.TimerHandle | None = None

    async def step(self, awaitable: Awaitable[T]) -> T:
        """Await one step; raise asyncio.TimeoutError when it takes too long; that cancels it."""
        self._since, self._waits = self._loop.time(), True
        try:
            return await awaitable
        except asyncio.CancelledError:
            if self._expired and self._is_mine():
                raise asyncio.TimeoutError from None
            raise
        finally:
            self._waits = False

    def _is_mine(self) -> bool:
        """Take the timer's cancellation back; return whether nobody else asked for one."""
        self._expired = False
        self.open()
        if not hasattr(self._task, "uncancel"):  # Python 3.10 does not count them
            return True
        return bool(self._task.uncancel() <= self._asked)

    def _cancellations(self) -> int:
        return self._task.cancelling() if hasattr(self._task, "cancelling") else 0

    def _look(self) -> None:
        left = self._since + self._seconds - self._loop.time() if self._waits else self._seconds
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._expired, self._timer = True, None
            self._task.cancel()

    def open(self) -> None:
        """Start the timer."""
        self._timer = self._loop.call_later(self._seconds, self._look)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()


@contextlib.contextmanager
def watching(seconds: float) -> Iterator[Watch]:
    """Give a watch over the steps of the current task."""
    watch = Watch(seconds)
    watch.open()
    try:
        yield watch
    finally:
        watch.close()
