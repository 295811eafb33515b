"""Many idle clients in one process: a TCP connection each, and the long poll over bare HTTP/2.

Started by `idle.py`. The first line on standard input says whom to play; each further line is a
command that is answered by one line on standard output. A client here is a few hundred bytes of
state and prebuilt frames, so that two processes can hold ten thousand of them beside the server
that is measured; what the server sees is what a daemon between two tasks sends.
"""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
import struct
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from motley.identity.names import SERVER_NAME
from motley.wire.stubs import common_pb2, federation_pb2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
HELD_SECONDS = 40.0
"""For so long the server holds a check-in that it has no task for."""


@dataclass(frozen=True, kw_only=True)
class Orders:
    """Whom a process plays."""

    address: str
    first: int
    count: int
    spread: float
    """Seconds over which the clients come."""
    certificates: str = ""
    """Folder with `ca.pem`, `key.pem` and `NAME.pem`; "" for plain text."""


@dataclass
class Counts:
    """What happened since the last report."""

    polls: int = 0
    late: list[float] = field(default_factory=list)
    """Seconds by which the answers of held check-ins came after they were due."""
    tasks: list[float] = field(default_factory=list)
    """Monotonic time at which each task came."""
    errors: list[str] = field(default_factory=list)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(authority: str, *, tls: bool) -> bytes:
    """Return the header block of a check-in, literal but for what HPACK's static table has."""

    def text(value: bytes) -> bytes:
        return bytes([len(value)]) + value

    block = b"\x83" + (b"\x87" if tls else b"\x86")  # POST, the scheme
    block += b"\x04" + text(b"/motley.v1.Federation/CheckIn")
    block += b"\x01" + text(authority.encode())
    block += b"\x0f\x10" + text(b"application/grpc")
    return block + b"\x00" + text(b"te") + text(b"trailers")


def check_in(name: str) -> bytes:
    """Return the message of an idle client, as full as a real one's."""
    return federation_pb2.CheckInRequest(
        name=name,
        session=f"session-of-{name}",
        capabilities=common_pb2.Capabilities(
            protocol=1,
            wire=1,
            algorithms={"fedavg": 1, "fedmpq": 1, "local": 1, "quped": 1},
            workloads={"digits": 1, "mnist": 1, "cifar10": 1},
            encodings=["dense", "uniform", "codebook"],
            software="0.1.0",
        ),
        profile=common_pb2.DeviceProfile(
            cores=4,
            memory_bytes=8 << 30,
            storage_free_bytes=50 << 30,
            architecture="aarch64",
            probe_gflops=20.0 + len(name),
            download_bytes_per_second=2.5e6,
            upload_bytes_per_second=1.25e6,
            threads=1,
            tier="phone",
            labels={"site": "north"},
            libraries={"torch": "2.3.1", "numpy": "1.26.4", "python": "3.11.7"},
        ),
    ).SerializeToString()


class Client(asyncio.Protocol):
    """One connection that polls without end; one that got a task polls no more."""

    __slots__ = (
        "_block",
        "_buffer",
        "_counts",
        "_message",
        "_reply",
        "_sent",
        "_stream",
        "_transport",
    )

    def __init__(self, block: bytes, message: bytes, counts: Counts) -> None:
        self._block, self._counts = block, counts
        self._message = b"\0" + struct.pack(">I", len(message)) + message
        self._buffer, self._reply, self._stream, self._sent = b"", b"", -1, 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(PREFACE + frame(SETTINGS, 0, 0, b""))
        self.poll()

    def poll(self) -> None:
        assert self._transport is not None
        self._stream += 2
        self._sent = time.monotonic()
        self._transport.write(
            frame(HEADERS, END_HEADERS, self._stream, self._block)
            + frame(DATA, END_STREAM, self._stream, self._message)
        )

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        at = 0
        while len(data) - at >= 9:
            size = int.from_bytes(data[at : at + 3], "big")
            if len(data) - at < 9 + size:
                break
            kind, flags = data[at + 3], data[at + 4]
            self._take(kind, flags, data[at + 9 : at + 9 + size])
            at += 9 + size
        self._buffer = data[at:]

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        assert self._transport is not None
        if kind in (SETTINGS, PING):
            if flags & ACK:
                return
            self._transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == DATA:
            self._reply += payload
        elif self._reply and flags & END_STREAM:
            reply, self._reply = self._reply, b""
            self._answered(reply)
        elif kind in (RST_STREAM, GOAWAY) or flags & END_STREAM:  # ended without an answer
            self._counts.errors.append(f"frame {kind}: {payload[:120]!r}")
            asyncio.get_running_loop().call_later(5.0, self.poll)

    def _answered(self, payload: bytes) -> None:
        counts, now = self._counts, time.monotonic()
        reply = federation_pb2.CheckInReply.FromString(payload[5:])
        counts.polls += 1
        waited = now - self._sent
        if reply.WhichOneof("outcome") == "task":
            counts.tasks.append(now)
        elif reply.notices:
            asyncio.get_running_loop().call_later(reply.retry_after_seconds, self.poll)
        else:
            counts.late.append(waited - HELD_SECONDS)
            self.poll()

    def connection_lost(self, error: Exception | None) -> None:
        self._counts.errors.append(f"connection lost: {error!r}")


class Crowd:
    """All clients of this process."""

    def __init__(self, orders: Orders) -> None:
        self.orders, self.counts, self.here = orders, Counts(), 0
        host, _, port = orders.address.rpartition(":")
        self._host, self._port = host, int(port)
        self._block = headers(
            SERVER_NAME if orders.certificates else orders.address, tls=bool(orders.certificates)
        )

    async def come(self) -> None:
        """Connect all clients, evenly spread."""
        started, pending = time.monotonic(), set()
        for number in range(self.orders.count):
            due = started + self.orders.spread * number / self.orders.count
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            one = asyncio.create_task(self._connect(f"idle-{self.orders.first + number:05d}"))
            pending.add(one)
            one.add_done_callback(pending.discard)
        while pending:
            await asyncio.wait(set(pending))

    async def _connect(self, name: str) -> None:
        client = Client(self._block, check_in(name), self.counts)
        tls = self._tls(name) if self.orders.certificates else None
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: client,
                self._host,
                self._port,
                ssl=tls,
                server_hostname=SERVER_NAME if tls else None,
            )
            self.here += 1
        except OSError as error:
            self.counts.errors.append(f"{name} cannot connect: {error!r}")

    def _tls(self, name: str) -> ssl.SSLContext:
        folder = Path(self.orders.certificates)
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.load_cert_chain(folder / f"{name}.pem", folder / "key.pem")
        context.set_alpn_protocols(["h2"])
        return context

    def report(self) -> str:
        """Return what happened since the last report, and forget it."""
        found = {"here": self.here, **asdict(self.counts)}
        for values in (self.counts.late, self.counts.tasks, self.counts.errors):
            values.clear()
        self.counts.polls = 0
        return json.dumps(found)


async def main() -> None:
    lines = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    crowd = Crowd(Orders(**json.loads(await lines.readline())))
    coming = asyncio.create_task(crowd.come())
    while line := await lines.readline():
        if line.strip() == b"come":
            await coming
            gc.freeze()  # ten thousand connections that stay are not looked through again
        print(crowd.report(), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
