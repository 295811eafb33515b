"""The server as calls see it: who we are to it, which errors end a transfer, how long to wait."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
from grpc import StatusCode

from fedclient.backoff import Backoff
from fedclient.errors import TransferError
from motley.waiting import Watch, watching

if TYPE_CHECKING:
    from fedclient.transfer.stub import ClientStub

FINAL = frozenset(
    {
        StatusCode.INVALID_ARGUMENT,
        StatusCode.NOT_FOUND,
        StatusCode.FAILED_PRECONDITION,
        StatusCode.OUT_OF_RANGE,
        StatusCode.PERMISSION_DENIED,
        StatusCode.UNAUTHENTICATED,
        StatusCode.UNIMPLEMENTED,
    }
)
"""The server understood and said no; trying again would hear the same."""

_REFUSAL = re.compile(r"\[([a-z_]+)\] ")
"""How the server's words begin: the code of its error."""

_RETRY_AFTER = "retry-after"
"""Trailing metadata of a refusal for now: the seconds to wait."""
LONGEST_PAUSE = 1800.0
"""Seconds after which the server is asked again, whatever it said: limits change."""

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long nothing may happen. A transfer that moves is never ended for being slow."""

    idle_seconds: float = 60.0
    """Without a frame or an acknowledgement: the attempt is broken off and resumed."""
    call_seconds: float = 30.0
    """For one short call."""
    poll_seconds: float = 75.0
    """For a check-in, which the server answers within 45 seconds."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Who we are to the server, and the calls to it."""

    stub: ClientStub
    name: str
    session: str
    rng: random.Random = field(default_factory=random.Random)
    sleep: Sleep = asyncio.sleep
    patience: Patience = field(default_factory=Patience)

    def backoff(self) -> Backoff:
        """Return fresh delays for one piece of work."""
        return Backoff(self.rng)

    def watching(self) -> AbstractContextManager[Watch]:
        """Give a watch over the steps of a stream: none may stand still for too long."""
        return watching(self.patience.idle_seconds)


def is_for_now(error: grpc.aio.AioRpcError) -> bool:
    """Return whether the server only said: later. Nothing is wrong with the link."""
    return bool(error.code() is StatusCode.RESOURCE_EXHAUSTED)


def pause(error: grpc.aio.AioRpcError, backoff: Backoff) -> float:
    """Return the seconds to wait after an error: what the server said, and the back-off."""
    told = 0.0
    for key, value in error.trailing_metadata() or ():
        if key == _RETRY_AFTER:
            with contextlib.suppress(ValueError, TypeError):
                told = float(value)
    return bounded(told) + backoff.next()


def bounded(seconds: float) -> float:
    """Return the seconds to wait where a server said so many: a number from 0 to LONGEST_PAUSE.

    >>> bounded(float("inf")), bounded(float("nan")), bounded(-5.0)
    (1800.0, 0.0, 0.0)
    """
    # `max` and `min` in this order also turn "nan" into 0: it is not greater than that.
    return min(LONGEST_PAUSE, max(0.0, seconds))


def raise_if_final(error: grpc.aio.AioRpcError, what: str) -> None:
    """Raise TransferError with the server's words when another attempt would not help."""
    if error.code() in FINAL:
        said = error.details() or error.code().name
        named = _REFUSAL.match(said)
        code = named[1] if named else error.code().name.lower()
        raise TransferError(f"{what}: {said}", code) from None
