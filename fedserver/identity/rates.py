"""How often strangers may knock: a token bucket for all, and one for each address."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A token bucket's size and how fast it fills again."""

    burst: float
    per_second: float


class _Bucket:
    def __init__(self, rate: Rate, now: float) -> None:
        self._rate, self._level, self._filled = rate, rate.burst, now

    def take(self, now: float) -> bool:
        gained = (now - self._filled) * self._rate.per_second
        self._level, self._filled = min(self._rate.burst, self._level + gained), now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Knocks:
    """Counts calls of strangers by address. Memory is bounded: old addresses are forgotten."""

    def __init__(
        self,
        monotonic: Callable[[], float],
        *,
        everyone: Rate = Rate(burst=200, per_second=50),
        one: Rate = Rate(burst=60, per_second=4),
        most_addresses: int = 4096,
    ) -> None:
        """Make counters.

        Args:
            monotonic: time in seconds.
            everyone: for all addresses together.
            one: for a single address; a room full of devices may stand behind one.
            most_addresses: how many are remembered.
        """
        self._monotonic, self._one, self._most = monotonic, one, most_addresses
        self._everyone = _Bucket(everyone, monotonic())
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def allow(self, address: str) -> bool:
        """Return whether a call from this address is to be answered now."""
        now = self._monotonic()
        bucket = self._buckets.pop(address, None) or _Bucket(self._one, now)
        self._buckets[address] = bucket
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        # The address first: one that floods must not use up what is there for all.
        return bucket.take(now) and self._everyone.take(now)
