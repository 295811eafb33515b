"""The connection to the server; one that works with a certificate can be made anew in mid-work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from motley.identity import names

if TYPE_CHECKING:
    from fedclient.identity.store import Identity

CHANNEL_OPTIONS = (
    names.DIRECT,
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
"""Pings every 20 s keep home routers from forgetting the connection during long training."""


def open_channel(server: str) -> grpc.aio.Channel:
    """Return a channel without TLS; it connects, and connects again, by itself."""
    return grpc.aio.insecure_channel(server, options=CHANNEL_OPTIONS)


def open_secure_channel(server: str, identity: Identity) -> grpc.aio.Channel:
    """Return a channel with mutual TLS; only a server of the device's authority is spoken to."""
    credentials = grpc.ssl_channel_credentials(identity.authority, identity.key, identity.chain)
    options = (*CHANNEL_OPTIONS, *names.CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(server, credentials, options=options)


@dataclass
class _Line:
    channel: grpc.aio.Channel
    calls: int = 0


class RenewableChannel:
    """Stands in for a channel; after `use` new calls go another way, and open ones go on.

    Make before break: the old channel is closed when its last call has ended.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._line = _Line(channel)
        self._lines = {id(self._line): self._line}
        self._closing: set[asyncio.Task[None]] = set()

    def use(self, channel: grpc.aio.Channel) -> None:
        """Send new calls over another channel."""
        before, self._line = self._line, _Line(channel)
        self._lines[id(self._line)] = self._line
        self._close_if_over(before)

    async def close(self) -> None:
        """Close everything; open calls are cancelled."""
        for line in list(self._lines.values()):
            await line.channel.close()

    @property
    def open_lines(self) -> int:
        """How many channels are not closed yet."""
        return len(self._lines)

    # The names that generated stubs ask a channel for.

    def unary_unary(self, *arguments: Any, **named: Any) -> Callable[..., Any]:
        """Return a call with one request and one reply."""
        return self._late("unary_unary", arguments, named)

    def unary_stream(self, *arguments: Any, **named: Any) -> Callable[..., Any]:
        """Return a call with one request and many replies."""
        return self._late("unary_stream", arguments, named)

    def stream_stream(self, *arguments: Any, **named: Any) -> Callable[..., Any]:
        """Return a call with many requests and many replies."""
        return self._late("stream_stream", arguments, named)

    def _late(
        self, kind: str, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Callable[..., Any]:
        def call(*request: Any, **options: Any) -> Any:
            line = self._line
            made = getattr(line.channel, kind)(*arguments, **named)(*request, **options)
            line.calls += 1
            made.add_done_callback(lambda _: self._ended(line))
            return made

        return call

    def _ended(self, line: _Line) -> None:
        line.calls -= 1
        self._close_if_over(line)

    def _close_if_over(self, line: _Line) -> None:
        if line is self._line or line.calls or self._lines.pop(id(line), None) is None:
            return
        closing = asyncio.get_running_loop().create_task(line.channel.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
