"""Bytes of a day: counted as they travel, kept in the record."""

from __future__ import annotations

import asyncio
import datetime
from dataclasses import dataclass

from structlog.stdlib import get_logger

from fedserver.errors import QuotaError
from fedserver.rounds.clock import Clock
from fedserver.rounds.standing import DAY, Standing
from fedserver.storage.database import DatabaseThread

log = get_logger()

SAVE_BYTES = 64 * 1024 * 1024
"""What a crash may forget of a client's traffic; an eighth of its day where that is less."""


@dataclass
class _Day:
    day: int
    used: int
    unsaved: int = 0


class Quota:
    """What each client sent and got today, by name."""

    def __init__(
        self, most: int | None, standing: Standing, database: DatabaseThread, clock: Clock
    ) -> None:
        self._most, self._standing = most, standing
        # A small day must not be voided by crashes, each of which forgets so much.
        self._save_bytes = SAVE_BYTES if most is None else max(1, min(SAVE_BYTES, most // 8))
        self._database, self._clock = database, clock
        self._days: dict[str, _Day] = {}
        self._saving: dict[str, asyncio.Future[None]] = {}

    async def open(self, client: str) -> None:
        """Begin a transfer; raise QuotaError when the day's bytes are used up."""
        await self._today(client)
        self._check(client)

    async def spend(self, client: str, count: int) -> None:
        """Count bytes that travelled; raise QuotaError when the day's are used up."""
        today = await self._today(client)
        today.used += count
        today.unsaved += count
        if today.unsaved >= self._save_bytes and client not in self._saving:
            # Beside the transfer, which a commit with its sync would hold up.
            self._saving[client] = saving = asyncio.ensure_future(self._save(client))
            saving.add_done_callback(lambda done: self._saved(client, done))
        self._check(client)

    async def save_all(self) -> None:
        """Put everything that was counted on record at once, before the server ends."""
        days = [(name, day, day.unsaved) for name, day in self._days.items() if day.unsaved]
        for _, day, _ in days:  # taken, so that a save that is under way does not count it too
            day.unsaved = 0
        rows = [(name, day.day, count) for name, day, count in days]
        try:
            await self._database(self._standing.add_traffic_of_all, rows)
        except BaseException:
            for _, day, count in days:
                day.unsaved += count
            raise

    async def _save(self, client: str) -> None:
        today = self._days.get(client)
        if today is None or not today.unsaved:
            return
        count, today.unsaved = today.unsaved, 0
        try:
            await self._database(self._standing.add_traffic, client, today.day, count)
        except BaseException:
            today.unsaved += count
            raise

    def _saved(self, client: str, done: asyncio.Future[None]) -> None:
        self._saving.pop(client, None)
        error = None if done.cancelled() else done.exception()
        if error is not None:
            log.warning("traffic_not_saved", client=client, reason=str(error))

    async def _today(self, client: str) -> _Day:
        day = int(self._clock.wall() // DAY)
        known = self._days.get(client)
        if known is not None and known.day == day:
            return known
        await self._save(client)
        used = await self._database(self._standing.traffic, client, day)
        # Another transfer of this client may have been here while the database was asked.
        now = self._days.get(client)
        if now is None or now.day != day:
            self._days[client] = now = _Day(day, used)
        return now

    def _check(self, client: str) -> None:
        today = self._days[client]
        if self._most is None or today.used < self._most:
            return
        ends = (today.day + 1) * DAY
        when = datetime.datetime.fromtimestamp(ends, datetime.timezone.utc)
        raise QuotaError(
            f"client {client!r} has used its {self._most} bytes of today; the next day begins at "
            f"{when:%Y-%m-%d %H:%M} UTC",
            max(1.0, ends - self._clock.wall()),
        )
