"""A TCP proxy that makes a network bad: one link for each client, faults on command.

All links live on one event loop in a thread of their own; the methods of `Link` may be called
from any thread. Bytes are counted in each direction; faults that say "after n bytes" count from
the moment they are ordered.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from http2_scan import Http2Scanner

Direction = Literal["up", "down"]
"""Up: from the client to the server."""
DIRECTIONS: tuple[Direction, Direction] = ("up", "down")
CHUNK = 16 * 1024


@dataclass
class _Order:
    """A fault that waits for its byte."""

    direction: Direction
    at: int
    """Value of the link's counter at which it happens."""
    action: Callable[[_Connection], None]


@dataclass(eq=False)
class _Connection:
    """One accepted connection and its other half."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter

    def cut(self, *, reset: bool) -> None:
        """Close both halves: with RST, or with FIN after what is buffered."""
        for writer in (self.client, self.server):
            if reset:
                raw = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()


@dataclass
class Counter:
    """Bytes that were passed on."""

    up: int = 0
    down: int = 0


@dataclass
class Link:
    """The way of one client to the server."""

    proxy: Proxy
    name: str
    address: str = ""
    passed: Counter = field(default_factory=Counter)
    happened: list[str] = field(default_factory=list)
    """Faults that took place, in order."""
    _orders: list[_Order] = field(default_factory=list)
    _corrupt: set[tuple[Direction, bool]] = field(default_factory=set)
    _open: set[_Connection] = field(default_factory=set)
    _stalled_until: float = 0.0
    _refusing_until: float = 0.0
    _delay: float = 0.0
    _rate: float = 0.0

    # --- faults ------------------------------------------------------------------------------

    def cut(self, direction: Direction, after: int = 0, *, reset: bool = True) -> None:
        """Break the connection once `after` more bytes have passed; 0: now, all of them."""
        word = f"cut {'RST' if reset else 'FIN'} {direction}"
        if after == 0:
            self.proxy.call(self._cut_all, reset, word)
            return

        def action(connection: _Connection) -> None:
            self.happened.append(word)
            connection.cut(reset=reset)

        self._after(direction, after, action)

    def stall(self, seconds: float, direction: Direction = "up", after: int = 0) -> None:
        """Pass nothing on in either direction for some time, as a dead radio link does."""

        def action(connection: _Connection | None = None) -> None:
            self.happened.append("stall")
            self._stalled_until = time.monotonic() + seconds

        self._after(direction, after, action)

    def refuse(self, seconds: float) -> None:
        """Cut what is open and refuse new connections for some time."""

        def action() -> None:
            self.happened.append("refuse")
            self._refusing_until = time.monotonic() + seconds
            self._cut_all(True, "")

        self.proxy.call(action)

    def slow(self, *, delay: float = 0.0, rate: float = 0.0) -> None:
        """Delay every chunk by some seconds, pass at most `rate` bytes a second; 0: not."""

        def action() -> None:
            if delay or rate:
                self.happened.append("delay" if delay else "throttle")
            self._delay, self._rate = delay, rate

        self.proxy.call(action)

    def corrupt(self, direction: Direction, *, anywhere: bool = False) -> None:
        """Flip a bit in the next large gRPC message; `anywhere`: in the very next byte (TLS)."""
        self.proxy.call(lambda: self._corrupt.add((direction, anywhere)))

    def heal(self) -> None:
        """Take back what has not happened yet, and everything that lasts."""

        def action() -> None:
            self._orders.clear()
            self._corrupt.clear()
            self._stalled_until = self._refusing_until = self._delay = self._rate = 0.0

        self.proxy.call(action)

    # --- on the loop -------------------------------------------------------------------------

    def _after(self, direction: Direction, after: int, action: Any) -> None:
        def order() -> None:
            if after == 0:
                action(None)
            else:
                at = getattr(self.passed, direction) + after
                self._orders.append(_Order(direction, at, action))

        self.proxy.call(order)

    def _cut_all(self, reset: bool, word: str) -> None:
        if word:
            self.happened.append(word)
        for connection in list(self._open):
            connection.cut(reset=reset)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either half ends."""
        if time.monotonic() < self._refusing_until:
            writer.transport.abort()
            return
        try:
            there, out = await asyncio.open_connection(*self.proxy.target)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(writer, out)
        self._open.add(connection)
        jobs = [
            asyncio.ensure_future(self._pump("up", reader, out, connection)),
            asyncio.ensure_future(self._pump("down", there, writer, connection)),
        ]
        try:
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(connection)
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            for half in (writer, out):
                half.close()

    async def _pump(
        self,
        direction: Direction,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        connection: _Connection,
    ) -> None:
        scanner = Http2Scanner(from_client=direction == "up")
        with contextlib.suppress(OSError):
            while chunk := await source.read(CHUNK):
                chunk = self._spoil(direction, chunk, scanner.middles(chunk))
                await self._hold(len(chunk))
                if not await self._pass(direction, chunk, target, connection):
                    return

    async def _hold(self, size: int) -> None:
        if self._delay:
            await asyncio.sleep(self._delay)
        if self._rate:
            await asyncio.sleep(size / self._rate)
        while (left := self._stalled_until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.1))

    async def _pass(
        self,
        direction: Direction,
        chunk: bytes,
        target: asyncio.StreamWriter,
        connection: _Connection,
    ) -> bool:
        """Write a chunk, up to the byte at which a fault is due; False when that cut it."""
        while chunk:
            before = getattr(self.passed, direction)
            due = [o for o in self._orders if o.direction == direction]
            due = [o for o in due if o.at <= before + len(chunk)]
            order = min(due, key=lambda o: o.at, default=None)
            piece = chunk if order is None else chunk[: max(0, order.at - before)]
            target.write(piece)
            await target.drain()
            setattr(self.passed, direction, before + len(piece))
            chunk = chunk[len(piece) :]
            if order is not None:
                self._orders.remove(order)
                order.action(connection)
                if target.transport.is_closing():
                    return False
                await self._hold(0)
        return True

    def _spoil(self, direction: Direction, chunk: bytes, middles: list[int]) -> bytes:
        if not self._corrupt:
            return chunk
        for anywhere in (True, False):
            if (direction, anywhere) in self._corrupt and (anywhere or middles):
                self._corrupt.discard((direction, anywhere))
                at = 0 if anywhere else middles[0]
                self.happened.append(f"corrupt {direction}")
                return chunk[:at] + bytes([chunk[at] ^ 0x10]) + chunk[at + 1 :]
        return chunk


class Proxy:
    """The thread with all links of one federation."""

    def __init__(self) -> None:
        self.target = ("127.0.0.1", 0)
        """Host and port of the server; may change while it runs."""
        self.links: dict[str, Link] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._servers: list[asyncio.Server] = []

    def open(self, name: str) -> Link:
        """Return the link of a client, made at its first use."""
        if name not in self.links:
            link = Link(self, name)
            future = asyncio.run_coroutine_threadsafe(self._listen(link), self._loop)
            link.address = future.result(10)
            self.links[name] = link
        return self.links[name]

    async def _listen(self, link: Link) -> str:
        server = await asyncio.start_server(link.accept, "127.0.0.1", 0)
        self._servers.append(server)
        host, port = server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    def call(self, function: Callable[[], None] | Callable[..., None], *args: Any) -> None:
        """Run a function on the loop, and wait for it."""
        done = threading.Event()

        def run() -> None:
            try:
                function(*args)
            finally:
                done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait(10)

    def close(self) -> None:
        """Break everything off and end the thread."""

        def stop() -> None:
            for server in self._servers:
                server.close()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.call_later(0.05, self._loop.stop)

        self.call(stop)
        self._thread.join(10)
        self._loop.close()
