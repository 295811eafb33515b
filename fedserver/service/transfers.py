"""Who may transfer when, how much may be in memory, and how long nothing may happen."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from motley.waiting import settled

T = TypeVar("T")

LARGEST_FRAME = 1 << 20
SMALLEST_FRAME = 16 * 1024
SIGN_OF_LIFE_SECONDS = 15.0
"""A transfer that waits for its turn, or whose update is checked, hears from the server so often:
well within the 60 s after which a client breaks off."""


class Turns:
    """At most so many transfers at once; those that wait are let in client by client."""

    def __init__(self, slots: int) -> None:
        self._slots = self._free = slots
        self._waiting: OrderedDict[str, deque[asyncio.Event]] = OrderedDict()

    @property
    def moving(self) -> int:
        """Transfers that hold a slot."""
        return self._slots - self._free

    @property
    def waiting(self) -> int:
        """Transfers that wait for one."""
        return sum(map(len, self._waiting.values()))

    @contextlib.asynccontextmanager
    async def turn(
        self, client: str, tell: Callable[[int], Awaitable[None]]
    ) -> AsyncIterator[None]:
        """Hold one of the slots, waiting for it first.

        `tell` is awaited at once and again and again while it waits, with the number of transfers
        before this one. Whoever is cancelled frees its place.
        """
        place = asyncio.Event()
        self._waiting.setdefault(client, deque()).append(place)
        self._admit()
        try:
            while not place.is_set():
                await tell(self._before(client, place))
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(place.wait(), SIGN_OF_LIFE_SECONDS)
            yield
        finally:
            self._leave(client, place)

    def _admit(self) -> None:
        while self._free and self._waiting:
            client, places = next(iter(self._waiting.items()))
            places.popleft().set()
            self._free -= 1
            del self._waiting[client]
            if places:
                self._waiting[client] = places  # behind all others

    def _leave(self, client: str, place: asyncio.Event) -> None:
        if place.is_set():
            self._free += 1
        else:
            self._waiting[client].remove(place)
            if not self._waiting[client]:
                del self._waiting[client]
        self._admit()

    def _before(self, client: str, place: asyncio.Event) -> int:
        """Return how many of those that wait now get their turn before this one."""
        own = self._waiting[client].index(place)
        count, earlier = own, True
        for other, places in self._waiting.items():
            if other == client:
                earlier = False
            else:
                count += min(len(places), own + earlier)
        return count


class FrameMemory:
    """Bytes that all frames between socket and disk may take; those who ask are served in turn."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._asking: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def used(self) -> int:
        """Bytes that are taken now."""
        return self._used

    async def take(self, count: int) -> None:
        """Wait until `count` bytes are free and take them."""
        if not self._asking and self._used + count <= self._limit:
            self._used += count
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asking.append((count, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give(count)  # granted just before it was cancelled
            else:
                self._grant()
            raise

    @contextlib.asynccontextmanager
    async def holding(self, count: int) -> AsyncIterator[None]:
        """Hold `count` bytes, waiting for them first."""
        await self.take(count)
        try:
            yield
        finally:
            self.give(count)

    def give(self, count: int) -> None:
        """Give bytes back."""
        self._used -= count
        self._grant()

    def _grant(self) -> None:
        while self._asking:
            count, future = self._asking[0]
            if not future.cancelled():
                if self._used + count > self._limit:
                    return
                self._used += count
                future.set_result(None)
            self._asking.popleft()


class FileThreads:
    """Threads that read, write, hash and check files beside the event loop.

    More than cores: a sync of one file must not hold up the frames of others.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="files")

    def start(self, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Hand in file work at once; await `settled` for its end."""
        return asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    async def __call__(self, function: Callable[..., T], *args: Any) -> T:
        """Run file work; a cancelled caller still waits for its end."""
        return await settled(self.start(function, *args))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
