"""The server's log events, as they happen, for those who watch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from structlog.typing import EventDict, WrappedLogger

from motley.logs import in_words

KEPT = 300
"""Newest events that are kept for pages that open or come back."""
LONGEST_VALUE = 300
"""Characters of one field; it may quote what a client sent."""
GATHER_SECONDS = 0.1
"""Events of so long go out together."""
_LEFT_OUT = frozenset({"event", "level", "timestamp", "exception", "exc_info", "stack"})


@dataclass(frozen=True, kw_only=True)
class Event:
    """One log event."""

    number: int
    """Grows by one, from 1 at the server's start."""
    text: str
    """A line of JSON: `time`, `level`, `event`, `fields`."""


class EventFeed:
    """A structlog processor that keeps the newest events and wakes those who wait for more."""

    def __init__(self) -> None:
        """Make a feed of the running event loop; events may come from any thread."""
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._newest = 0
        self._waiting: set[asyncio.Event] = set()
        self._woken = self.closed = False

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Keep one event; it goes on unchanged."""
        fields = {k: _plain(v) for k, v in event.items() if k not in _LEFT_OUT}
        text = json.dumps(
            {
                "time": event.get("timestamp", ""),
                "level": event.get("level", method),
                "event": str(event.get("event", ""))[:LONGEST_VALUE],
                "fields": fields,
            },
            separators=(",", ":"),
        )
        with self._lock:
            self._newest += 1
            self._kept.append(Event(number=self._newest, text=text))
            wake, self._woken = not self._woken, True
        if wake:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._wake)
        return event

    def _wake(self) -> None:
        self._woken = False
        for waiting in self._waiting:
            waiting.set()

    def close(self) -> None:
        """End all streams."""
        self.closed = True
        self._wake()

    def after(self, number: int) -> list[Event]:
        """Return the kept events after `number`, the oldest first."""
        with self._lock:
            if number > self._newest:  # of a server that ran before this one
                number = 0
            return [event for event in self._kept if event.number > number]

    async def follow(self, number: int, silence: float) -> AsyncIterator[list[Event]]:
        """Yield the events after `number` as they come, `[]` after `silence` seconds of none."""
        waiting = asyncio.Event()
        self._waiting.add(waiting)
        try:
            while not self.closed:
                waiting.clear()
                found = self.after(number)
                if found:
                    number = found[-1].number
                    yield found
                    await asyncio.sleep(GATHER_SECONDS)
                    continue
                try:
                    await asyncio.wait_for(waiting.wait(), silence)
                except asyncio.TimeoutError:
                    yield []
        finally:
            self._waiting.discard(waiting)


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float) and math.isfinite(value):  # JSON has no word for others
        return value
    return str(in_words(value))[:LONGEST_VALUE]
