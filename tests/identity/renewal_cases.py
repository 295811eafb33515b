"""A registry and a device that renews with it, without a network; the test moves their clocks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
from bench import ManualClock

from fedclient.identity.renewal import Renewal
from fedclient.identity.store import IdentityStore
from fedclient.transfer.peer import Peer
from fedserver.identity.authority import Authority, Settings
from fedserver.identity.registry import Registry
from fedserver.storage.database import open_database
from motley.errors import MotleyError
from motley.identity.certificates import Certificate, read_certificate
from motley.identity.keys import new_key, signing_request
from motley.wire.stubs import federation_pb2


class Records:
    """A registry whose clock the test sets, and starts of its server anew."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.clock = ManualClock()
        self.clock.now = 1.8e9
        self.authority = Authority.create(root, Settings(host="h"), self.clock)
        self.database = open_database(root)
        self.registry = self.started()

    def started(self) -> Registry:
        return Registry(self.database, self.authority, self.clock)

    def joined(self, name: str, client: str = "") -> str:
        """Let a device join; returns the serial number of its certificate."""
        token, _ = self.registry.create_token(1, 600, client, "h:1")
        request = signing_request(new_key())
        issued = self.registry.enrol(token.id, token.secret, name, request)
        return read_certificate(issued.certificate).serial

    def renewed(self, name: str) -> str:
        issued = self.registry.renew(name, signing_request(new_key()))
        return read_certificate(issued.certificate).serial


class EnoughError(Exception):
    """The test has seen what it wanted."""


class Device:
    """c0, which joined and whose daemon renews with `records`."""

    def __init__(self, root: Path) -> None:
        self.records = Records(root / "data")
        self.clock = ManualClock()
        self.clock.now = self.records.clock.now
        self.store = IdentityStore(root / "c0")
        token, _ = self.records.registry.create_token(1, 600, "", "h:1")
        key = self.store.joining_key()
        request = signing_request(key)
        issued = self.records.registry.enrol(token.id, token.secret, "c0", request)
        self.store.save(key, issued.certificate, self.records.authority.der, "h:1")
        self.waits: list[float] = []
        self.asked: list[bytes] = []
        """Signing requests that the server got."""
        self.on_wait: Callable[[], None] = lambda: None

    def held(self) -> Certificate:
        """Return the certificate on the disk."""
        return self.store.load("c0").certificate

    async def run(self, clock: Callable[[], float] | None = None) -> Renewal:
        """Let a daemon that starts now renew until `on_wait` has enough."""
        peer = Peer(stub=self, name="c0", session="s", sleep=self._sleep)  # type: ignore[arg-type]
        channel: Any = SimpleNamespace(use=lambda _: None)
        identity = self.store.load("c0")
        keeper = Renewal(
            peer, self.store, channel, identity, "localhost:1", clock=clock or self.clock.wall
        )
        with contextlib.suppress(EnoughError):
            await keeper.run()
        return keeper

    async def Renew(self, request: Any, timeout: float) -> Any:  # noqa: N802
        self.asked.append(request.signing_request)
        try:
            issued = self.records.registry.renew("c0", request.signing_request)
        except MotleyError as error:
            status, none = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(status, none, none, str(error)) from None
        return federation_pb2.RenewReply(certificate=issued.certificate)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.now += seconds
        self.on_wait()


def after(device: Device, attempts: int) -> None:
    """Have enough when the device waited that often."""
    device.waits.clear()

    def look() -> None:
        if len(device.waits) >= attempts:
            raise EnoughError

    device.on_wait = look


def due(root: Path) -> Device:
    device = Device(root)
    device.clock.now = device.records.clock.now = device.held().renew_at + 1
    return device
