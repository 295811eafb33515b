"""A TCP proxy that counts bytes in both directions and cuts connections after so many."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field

CHUNK = 16 * 1024


@dataclass
class CuttingProxy:
    """Forwards to `target`; each connection beyond the cuts that are planned lives on."""

    target: str
    cuts_up: deque[int] = field(default_factory=deque)
    """Bytes from client to server after which the next connections are cut, one each."""
    cuts_down: deque[int] = field(default_factory=deque)
    up: int = 0
    """Bytes that came from clients, cut ones included."""
    down: int = 0
    """Bytes that came from the server, cut ones included."""
    carried: list[int] = field(default_factory=list)
    """Bytes that came from the client, then those from the server, of each connection in turn."""
    cut: int = 0
    address: str = ""

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    def repeated(self, way: str, offsets: list[int], size: int) -> list[int]:
        """Return the bytes that each cut cost, framing included.

        `offsets` are those at which each connection went on in a transfer of `size` bytes.
        """
        carried = self.carried[way == "down" :: 2]
        ends = [*offsets[1:], size]
        return [
            sent - (end - start) for sent, start, end in zip(carried, offsets, ends, strict=True)
        ]

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._tasks.add(me)
        at = len(self.carried)
        self.carried += [0, 0]
        host, _, port = self.target.rpartition(":")
        up = self.cuts_up.popleft() if self.cuts_up else None
        down = self.cuts_down.popleft() if self.cuts_down else None
        writers = [writer]
        try:
            there_reader, there_writer = await asyncio.open_connection(host, int(port))
            writers.append(there_writer)
            jobs = {
                asyncio.ensure_future(self._pump(reader, there_writer, "up", up, at)),
                asyncio.ensure_future(self._pump(there_reader, writer, "down", down, at + 1)),
            }
            _, rest = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            for job in rest:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
        except asyncio.CancelledError:
            pass  # the proxy closes; nobody awaits this task
        finally:
            self._tasks.discard(me)
            for each in writers:
                each.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: str,
        limit: int | None,
        at: int,
    ) -> None:
        left = limit
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                self.carried[at] += len(data)
                setattr(self, way, getattr(self, way) + len(data))
                if left is not None and len(data) > left:
                    writer.write(data[:left])
                    await writer.drain()
                    self.cut += 1
                    return
                left = None if left is None else left - len(data)
                writer.write(data)
                await writer.drain()
