"""A server with certificates in this process, devices that join it, and raw calls to it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedclient.channel import CHANNEL_OPTIONS, open_secure_channel
from fedclient.identity.join import join
from fedclient.identity.store import Identity, IdentityStore
from fedserver.client import Operator
from fedserver.identity.authority import Authority, Settings
from fedserver.listeners import Ports
from fedserver.serve import serve
from motley.identity import names
from motley.identity.certificates import certificate_to_pem, read_certificate
from motley.identity.keys import key_to_pem, new_key
from motley.identity.tokens import JoinToken, parse_token
from motley.wire.stubs import common_pb2, federation_pb2, federation_pb2_grpc
from motley.workloads.digits import Digits

pb = federation_pb2
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
DENIED = grpc.StatusCode.PERMISSION_DENIED
LOCAL = "127.0.0.1:0"


@dataclass
class Rig:
    """One server; `client`, `join`, `control` are its addresses."""

    root: Path
    data: Path
    client: str
    join: str
    control: str
    open: list[grpc.aio.Channel] = field(default_factory=list)

    async def operator(self, function: str, *arguments: object) -> Any:
        def call() -> Any:
            with Operator(self.data) as operator:
                return getattr(operator, function)(*arguments)

        return await asyncio.to_thread(call)

    async def token(self, uses: int = 10, seconds: float = 600, client: str = "") -> JoinToken:
        text, _ = await self.operator("create_token", uses, seconds, client)
        return parse_token(text)

    async def joined(
        self, name: str, token: JoinToken | None = None, server: str = "", folder: str = ""
    ) -> Identity:
        """Let a device join; returns what it holds."""
        store = IdentityStore(self.root / (folder or name))
        token = token or await self.token()
        return await asyncio.to_thread(join, token, name, store, server, sleep=lambda _: None)

    def stub(self, identity: Identity, server: str = "") -> Any:
        channel = open_secure_channel(server or self.client, identity)
        self.open.append(channel)
        return federation_pb2_grpc.FederationStub(channel)

    async def check_in(self, stub: Any, name: str, timeout: float = 20, **fields: Any) -> Any:
        request = pb.CheckInRequest(
            name=name,
            session=str(fields.pop("session", f"session-{name}")),
            capabilities=common_pb2.Capabilities(
                protocol=1,
                wire=1,
                algorithms={"fedavg": 1},
                workloads={"digits": Digits.version},
                encodings=["dense", "uniform", "codebook"],
            ),
            profile=common_pb2.DeviceProfile(cores=1, threads=1),
            **fields,
        )
        return await stub.CheckIn(request, timeout=timeout)

    async def task(self, stub: Any, name: str) -> common_pb2.Task:
        while True:
            reply = await self.check_in(stub, name, timeout=60)
            if reply.WhichOneof("outcome") == "task":
                return reply.task

    def signed(self, role: str, name: str, authority: Authority | None = None) -> Identity:
        """Return an identity that an authority signed behind the registry's back."""
        ours = Authority(self.data)
        key = new_key()
        der = (authority or ours).sign(role, name, key.public_key())
        return Identity(
            key=key_to_pem(key),
            chain=certificate_to_pem(der),
            authority=ours.pem,
            server=self.client,
            certificate=read_certificate(der),
        )


@contextlib.asynccontextmanager
async def running(root: Path, **settings: Any) -> AsyncIterator[Rig]:
    data, ready = root / "data", root / "ready"
    if not Authority.exists(data):
        data.mkdir(parents=True)
        Authority.create(data, Settings(host="127.0.0.1", **settings))
    ports = Ports(join=LOCAL, control=LOCAL)
    server = asyncio.create_task(serve(data, LOCAL, {}, ports=ports, on_ready=ready))
    while not ready.exists() or not ready.read_text():
        assert not server.done(), server.exception()
        await asyncio.sleep(0.01)
    client, *others = ready.read_text().splitlines()
    addresses = dict(line.split(" ") for line in others)
    rig = Rig(root, data, client, addresses["join"], addresses["control"])
    try:
        yield rig
    finally:
        for channel in rig.open:
            await channel.close()
        server.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await server
        ready.unlink()


def scenario(body: Callable[[Rig], Awaitable[None]], root: Path, **settings: Any) -> None:
    async def main() -> None:
        async with running(root, **settings) as rig:
            await asyncio.wait_for(body(rig), 120)

    asyncio.run(main())


@contextlib.contextmanager
def refused(status: grpc.StatusCode, text: str = "") -> Iterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is status, (caught.value.code(), caught.value.details())
    assert text in (caught.value.details() or "")


async def is_working(rig: Rig, stub: Any, name: str) -> bool:
    """Whether a client is let in: it asks after a task, which is answered at once."""
    return bool((await rig.check_in(stub, name, working_on="nothing")).working_on_is_closed)


async def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, "the condition never came true"
        await asyncio.sleep(0.01)


def plain_stub(address: str) -> tuple[grpc.aio.Channel, Any]:
    channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return channel, federation_pb2_grpc.FederationStub(channel)


def tls_channel(address: str, root: bytes, identity: Identity | None = None) -> grpc.aio.Channel:
    pair = (identity.key, identity.chain) if identity else (None, None)
    credentials = grpc.ssl_channel_credentials(root, *pair)
    return grpc.aio.secure_channel(address, credentials, options=names.CHANNEL_OPTIONS)


class Proxy:
    """Passes TCP through from an address of its own, as a port forwarding does."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self.bytes = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._host, self._port)
        for source, sink in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(self._pass(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                self.bytes += len(data)
                sink.write(data)
                await sink.drain()
        sink.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
