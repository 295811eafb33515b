"""Bytes of a day: counted as they travel, kept in the record."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from fedserver.errors import QuotaError
from fedserver.rounds.clock import Clock
from fedserver.rounds.standing import DAY, Standing
from fedserver.storage.database import DatabaseThread

SAVE_BYTES = 8 * 1024 * 1024
"""What a crash may forget of a client's traffic."""


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
        self._database, self._clock = database, clock
        self._days: dict[str, _Day] = {}

    async def open(self, client: str) -> None:
        """Begin a transfer; raise QuotaError when the day's bytes are used up."""
        await self._today(client)
        self._check(client)

    async def spend(self, client: str, count: int) -> None:
        """Count bytes that travelled; raise QuotaError when the day's are used up."""
        today = await self._today(client)
        today.used += count
        today.unsaved += count
        if today.unsaved >= SAVE_BYTES:
            await self.save(client)
        self._check(client)

    async def save(self, client: str) -> None:
        """Put what was counted on record."""
        today = self._days.get(client)
        if today is not None and today.unsaved:
            count, today.unsaved = today.unsaved, 0
            await self._database(self._standing.add_traffic, client, today.day, count)

    async def _today(self, client: str) -> _Day:
        day = int(self._clock.wall() // DAY)
        known = self._days.get(client)
        if known is not None and known.day == day:
            return known
        await self.save(client)
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
