"""An HTTP application on a port of its own, in the server's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import uvicorn

from fedserver.errors import AddressError
from fedserver.listeners import split_address

if TYPE_CHECKING:
    from starlette.types import ASGIApp

MOST_CONNECTIONS = 100
"""Open connections and requests of one listener; more are answered with 503."""
CLOSING_SECONDS = 1
"""Requests that last longer, streams among them, are cut off when the server ends."""


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the daemon, which ends listeners in its own order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def install_signal_handlers(self) -> None:
        """Older versions of the library call this instead."""


class HttpListener:
    """One application on one address."""

    def __init__(self, server: uvicorn.Server, running: asyncio.Task[None], address: str) -> None:
        self._server, self._running = server, running
        self.address = address
        """HOST:PORT that it is bound to."""

    @classmethod
    async def open(cls, app: ASGIApp, address: str, option: str) -> HttpListener:
        """Listen; raise AddressError when the address is not free or not this machine's.

        `option` is what gave the address, for the message.
        """
        host, port = split_address(address)
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            bound = socket.create_server((host, port), family=family)
        except OSError as error:
            raise AddressError(
                f"cannot listen on {address}: {error.strerror}; give another with {option}"
            ) from None
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=CLOSING_SECONDS,
        )
        server = _Uvicorn(config)
        running = asyncio.create_task(server.serve(sockets=[bound]))
        while not (server.started or running.done()):
            await asyncio.sleep(0.005)
        name = f"[{host}]" if ":" in host else host
        return cls(server, running, f"{name}:{bound.getsockname()[1]}")

    async def close(self) -> None:
        """Take no more requests, and end those that are open."""
        self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
