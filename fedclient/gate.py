"""Keeps the daemon from taking tasks while a condition of the owner's does not hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from structlog.stdlib import get_logger

from fedclient.conditions import Condition, Platform, Reading
from fedclient.errors import OptionError

log = get_logger()

LOOK_SECONDS = 30.0
"""Between two looks at the platform."""


class Gate:
    """Open while all conditions hold. Without conditions it always is."""

    def __init__(
        self,
        conditions: Sequence[Condition],
        platform: Platform | None = None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._conditions, self._platform = tuple(conditions), platform or Platform()
        self._sleep = sleep

    async def check(self) -> None:
        """Raise OptionError when the platform does not tell of a condition at all."""
        for condition in self._conditions:
            reading = await self._platform.read(condition)
            if reading.holds is None:
                raise OptionError(
                    f"--only-when {condition.value}: {reading.words}, so that this device would "
                    f"never work; leave the condition out"
                )

    async def opened(self, leave: Callable[[], Awaitable[None]]) -> None:
        """Return once all conditions hold; log one line when it waits and one when it goes on.

        `leave` is called once when it has to wait.
        """
        waiting = False
        while missing := await self._missing():
            if not waiting:
                log.info("conditions_wait", **missing)
                waiting = True
                await leave()
            await self._sleep(LOOK_SECONDS)
        if waiting:
            log.info("conditions_hold", conditions=[c.value for c in self._conditions])

    async def shut(self) -> None:
        """Return once a condition does not hold any more; never without conditions."""
        if not self._conditions:
            await asyncio.Event().wait()
        while not await self._missing():
            await self._sleep(LOOK_SECONDS)

    async def _missing(self) -> dict[str, str]:
        """Return why each condition fails that does. What cannot be read now does not hold."""
        readings: dict[Condition, Reading] = {}
        for condition in self._conditions:
            readings[condition] = await self._platform.read(condition)
        return {found.value: read.words for found, read in readings.items() if not read.holds}
