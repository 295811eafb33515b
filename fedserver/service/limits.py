"""What one client may ask of the server, and what becomes of one that breaks the protocol.

Everything here runs on the event loop and counts in memory; `fedserver/rounds/standing.py` keeps
what has to survive a restart. A *caller* is a client whose name a certificate proves, or, where
names are only believed, a name together with its session: nobody can use up another's share, or
get another put aside, by saying its name.
"""

from __future__ import annotations

import contextlib
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from structlog.stdlib import get_logger

from fedserver.errors import CrowdedError, LimitsFileError, RateError, SetAsideError
from fedserver.rounds.clock import Clock
from motley.errors import MotleyError
from motley.faults import describe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

log = get_logger()

MIB = 1 << 20
LONGEST_SET_ASIDE = 24 * 3600.0
"""Seconds; each time in a row doubles the one before, up to this."""
CROWDED_SECONDS = 5.0
"""A client with too many transfers is told to come back after so long."""
MOST_CALLERS = 16_384
"""Callers that are remembered; beyond, those that were quiet longest are forgotten.

More than the clients that one server holds, so that none of those is forgotten at every turn.
"""
STRIKES = frozenset({"protocol", "frame", "payload", "update", "offset"})
"""Codes of errors that only a client that is wrong, or means harm, causes again and again."""
DAMAGE = frozenset({"frame", "payload"})
"""Of these, what a bad link can cause too: the first in a while is forgiven."""


class Limits(BaseModel):
    """What `fedserver serve --limits FILE` sets; docs/operations.md explains each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    transfers: int = Field(default=16, ge=1)
    """Uploads and downloads at the same time; others wait for their turn."""
    frame_memory_mib: int = Field(default=256, ge=1)
    """All frames between socket and disk."""
    idle_seconds: float = Field(default=120.0, gt=0)
    """A transfer that stands for so long is ended."""
    transfers_per_client: int = Field(default=4, ge=1)
    pending_uploads: int = Field(default=8, ge=1)
    """Unfinished updates of one client on the server's disk."""
    calls_per_second: float = Field(default=20.0, gt=0)
    calls_burst: int = Field(default=100, ge=1)
    bytes_per_day: int | None = Field(default=None, ge=1)
    """Of one client, both directions, a day in UTC."""
    strikes: int = Field(default=10, ge=1)
    """Broken rules within `strike_seconds` for which a client is put aside."""
    strike_seconds: float = Field(default=600.0, gt=0)
    set_aside_seconds: float = Field(default=600.0, gt=0, le=LONGEST_SET_ASIDE)
    """For the first time; doubled each time after."""

    @model_validator(mode="after")
    def _a_frame_for_each(self) -> Limits:
        if self.frame_memory_mib < self.transfers:
            raise ValueError(
                f"frame_memory_mib is {self.frame_memory_mib}, and {self.transfers} transfers "
                f"need a frame of 1 MiB each; raise it, or lower transfers"
            )
        return self


def read_limits(path: Path | None, transfers: int | None) -> Limits:
    """Return the limits of a TOML file, defaults without one; `transfers` goes before the file.

    Raises:
        LimitsFileError: it cannot be read, or names what does not exist or cannot be.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig")) if path else {}
        return Limits.model_validate(values | ({"transfers": transfers} if transfers else {}))
    except OSError as error:
        raise LimitsFileError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LimitsFileError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        faults = "\n  ".join(describe(error, Limits))
        raise LimitsFileError(f"{path or 'limits'} is not valid:\n  {faults}") from None


@dataclass(frozen=True)
class Caller:
    """Who is counted: a name, with its session where names are only believed."""

    name: str
    session: str = ""


@dataclass
class _Account:
    """What is remembered of a caller."""

    tokens: float
    filled: float
    """Monotonic seconds at which `tokens` was right."""
    transfers: int = 0
    strikes: tuple[float, ...] = ()
    """When it broke a rule, of late."""
    damaged: float = float("-inf")
    """When damaged bytes last came."""
    times: int = 0
    """How often it was put aside."""
    until: float = float("-inf")
    reason: str = ""

    def rests(self, now: float) -> bool:
        """Return whether nothing is lost when it is forgotten."""
        return not self.transfers and self.until <= now


PutAside = Callable[[Caller, float, str], Awaitable[None]]


class Guard:
    """Counts what callers do and turns away what is too much."""

    def __init__(
        self, limits: Limits, clock: Clock, *, names_are_proven: bool, put_aside: PutAside
    ) -> None:
        """Make a guard; `put_aside(caller, seconds, reason)` puts it on record."""
        self.limits, self._clock = limits, clock
        self._proven, self._put_aside = names_are_proven, put_aside
        self._accounts: OrderedDict[Caller, _Account] = OrderedDict()

    def caller(self, name: str, session: str) -> Caller:
        """Return who is counted for a call."""
        return Caller(name[:64], "" if self._proven else session[:64])

    def restore(self, caller: Caller, seconds: float, reason: str) -> None:
        """Take up a time aside that the record holds."""
        account = self._account(caller)
        account.until, account.reason = self._clock.monotonic() + seconds, reason
        account.times = 1

    @contextlib.asynccontextmanager
    async def call(self, caller: Caller) -> AsyncIterator[None]:
        """Hold one call of a caller; rules that it breaks within are counted.

        Raises:
            SetAsideError: it broke too many, a while ago.
            RateError: it calls too often.
        """
        self.check(caller)
        self._count_call(self._account(caller))
        try:
            yield
        except MotleyError as error:
            if error.code in STRIKES:
                await self._strike(caller, error)
            raise

    def check(self, caller: Caller) -> None:
        """Raise SetAsideError while a caller is put aside."""
        account = self._accounts.get(caller)
        left = account.until - self._clock.monotonic() if account else 0.0
        if account and left > 0:
            raise SetAsideError(
                f"client {caller.name!r} is put aside for another {left:.0f} s: {account.reason}",
                left,
            )

    @contextlib.contextmanager
    def transfer(self, caller: Caller) -> Iterator[None]:
        """Hold one open transfer of a caller, waiting ones included; raise CrowdedError."""
        account, most = self._account(caller), self.limits.transfers_per_client
        if account.transfers >= most:
            raise CrowdedError(
                f"client {caller.name!r} has {account.transfers} open transfers; expected up to "
                f"{most}. End one, or try again in {CROWDED_SECONDS:.0f} s",
                CROWDED_SECONDS,
            )
        account.transfers += 1
        try:
            yield
        finally:
            account.transfers -= 1

    def _account(self, caller: Caller) -> _Account:
        now = self._clock.monotonic()
        if caller not in self._accounts:
            self._accounts[caller] = _Account(float(self.limits.calls_burst), now)
            self._forget(now)
        self._accounts.move_to_end(caller)
        return self._accounts[caller]

    def _forget(self, now: float) -> None:
        """Keep names that are only made up from filling the memory."""
        over = len(self._accounts) - MOST_CALLERS
        if over > 0:
            resting = (c for c, account in self._accounts.items() if account.rests(now))
            for caller in [c for c, _ in zip(resting, range(over), strict=False)]:
                del self._accounts[caller]

    def _count_call(self, account: _Account) -> None:
        now, rate = self._clock.monotonic(), self.limits.calls_per_second
        gained = (now - account.filled) * rate
        account.tokens = min(self.limits.calls_burst, account.tokens + gained)
        account.filled = now
        if account.tokens < 1 - 1e-6:  # whoever waited as told is not turned away by a last bit
            wait = (1 - account.tokens) / rate
            raise RateError(f"more than {rate:g} calls a second; try again in {wait:.2f} s", wait)
        account.tokens -= 1

    async def _strike(self, caller: Caller, error: MotleyError) -> None:
        account, now, limits = self._account(caller), self._clock.monotonic(), self.limits
        if error.code in DAMAGE:
            forgiven = now - account.damaged > limits.strike_seconds
            account.damaged = now
            if forgiven:
                return
        recent = [when for when in account.strikes if now - when <= limits.strike_seconds]
        account.strikes = (*recent, now)
        if len(account.strikes) < limits.strikes:
            return
        account.strikes = ()
        seconds = min(LONGEST_SET_ASIDE, limits.set_aside_seconds * 2.0**account.times)
        account.times += 1
        account.reason = (
            f"it broke the protocol {limits.strikes} times within {limits.strike_seconds:g} s, "
            f"last: [{error.code}] {error}"
        )[:500]
        account.until = now + seconds
        log.warning("client_set_aside", client=caller.name, seconds=seconds, reason=account.reason)
        await self._put_aside(caller, seconds, account.reason)
