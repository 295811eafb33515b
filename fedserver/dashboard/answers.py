"""What the record says, as JSON, kept for all pages while nothing changed."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedserver.rounds.engine import Engine
from fedserver.rounds.lines import to_json
from fedserver.rounds.reader import Reader

MOST_KEPT = 32
REST = 10.0
"""A question that took a second is asked again after ten at the earliest: looking at a run of
hundreds of clients and rounds never takes more than a tenth of a processor."""

Key = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """An answer, and how long it is good for."""

    body: bytes
    change: int
    """Number of the change that it was asked after."""
    asked: float
    rests_until: float


class Answers:
    """Asks the reader, or remembers."""

    def __init__(self, reader: Reader, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._reader, self._now = reader, monotonic
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._asking: dict[Key, asyncio.Task[bytes]] = {}
        self._change = 0

    def changed(self) -> None:
        """Note that the record changed."""
        self._change += 1

    async def __call__(
        self, question: Callable[..., Any], *arguments: Any, good_for: float = math.inf
    ) -> bytes:
        """Return `question(engine, *arguments)` as JSON.

        `good_for`: seconds after which it is asked again even if the record did not change.
        """
        key = (question, arguments)
        kept, now = self._kept.get(key), self._now()
        if kept is not None:
            unchanged = kept.change == self._change and now - kept.asked < good_for
            if unchanged or now < kept.rests_until:
                self._kept.move_to_end(key)
                return kept.body
        if key not in self._asking:
            self._asking[key] = asyncio.create_task(self._ask(key))
        # Pages that leave do not take the answer from those that wait for the same.
        return await asyncio.shield(self._asking[key])

    async def _ask(self, key: Key) -> bytes:
        question, arguments = key

        def asked(engine: Engine) -> tuple[bytes, float]:
            begin = self._now()
            body = to_json(question(engine, *arguments)).encode()
            return body, self._now() - begin

        try:
            change, begin = self._change, self._now()
            body, seconds = await self._reader(asked)
            rests = self._now() + REST * seconds
            kept = _Kept(body=body, change=change, asked=begin, rests_until=rests)
            self._kept[key] = kept
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
            return body
        finally:
            del self._asking[key]
