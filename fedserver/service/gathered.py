"""Calls that come while the database thread is busy, done together in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from fedserver.storage.database import DatabaseThread

Q = TypeVar("Q")
A = TypeVar("A")

MOST_AT_ONCE = 200
"""Questions that one transaction answers; others of the server's work come in between."""


class Gathered(Generic[Q, A]):
    """A function of many questions, asked one by one: a commit and its sync serve many callers.

    A question waits for no others: the first goes at once, what comes meanwhile goes next.
    """

    def __init__(
        self, database: DatabaseThread, answer: Callable[[Sequence[Q]], Sequence[A]]
    ) -> None:
        """Gather for `answer`, which runs on the database thread and keeps the order."""
        self._database, self._answer = database, answer
        self._open: list[tuple[Q, asyncio.Future[A]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def __call__(self, question: Q) -> A:
        """Return the answer; raises what `answer` raised for all that were asked with it."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._open.append((question, future))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return await future

    async def _ask(self) -> None:
        try:
            while self._open:
                asked, self._open = self._open[:MOST_AT_ONCE], self._open[MOST_AT_ONCE:]
                await self._settle(asked)
        finally:
            self._asking = None

    async def _settle(self, asked: list[tuple[Q, asyncio.Future[A]]]) -> None:
        waiting = [future for _, future in asked]
        try:
            answers = await self._database(self._answer, [question for question, _ in asked])
        except Exception as error:
            for future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
        for future, found in zip(waiting, answers, strict=True):
            if not future.done():  # its caller has gone
                future.set_result(found)
