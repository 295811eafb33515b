"""The ports that a server listens on, and what guards each of them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedserver.control_socket import control_socket
from fedserver.errors import AddressError
from fedserver.service.callers import OperatorsOnly
from fedserver.service.decoding import Decoding
from fedserver.service.federation import FederationService
from fedserver.service.status import RefusedError, abort, refusals
from fedserver.service.transfers import LARGEST_FRAME
from motley.wire.stubs import (
    control_pb2_grpc,
    federation_pb2_grpc,
    join_pb2_grpc,
)

if TYPE_CHECKING:
    from fedserver.service.control import ControlService
    from fedserver.service.join import JoinService

# Clients ping every 20 s, also while they only wait; the server must allow that, or it would
# answer with GOAWAY "too many pings".
CHANNEL_OPTIONS = [
    ("grpc.so_reuseport", 0),  # two servers on one port would share its clients at random
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
    # A frame and what is around it; nothing longer is even read.
    ("grpc.max_receive_message_length", LARGEST_FRAME + 64 * 1024),
]
JOIN_OPTIONS = [
    ("grpc.so_reuseport", 0),
    # Strangers: a call has some hundred bytes and is over at once, and so is the connection.
    ("grpc.max_receive_message_length", 16 * 1024),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_connection_age_ms", 30_000),
    ("grpc.max_connection_age_grace_ms", 10_000),
]
JOIN_CALLS = 64
"""Calls on the join port that are answered at one time; more are told to come later."""
LONGEST_SOCKET_PATH = 100
"""Unix socket paths end at 107 bytes on Linux, 103 elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where a server with certificates listens, besides the client port. `HOST:PORT`."""

    join: str = ""
    """"": the join port stays closed."""
    control: str = ""
    """"": the control service is on the unix socket alone."""


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`; raise AddressError on another form."""
    host, separator, port = address.rpartition(":")
    is_number = port.isascii() and port.isdigit()
    if not separator or not host or not is_number or int(port) > 65535:
        raise AddressError(f"address {address!r}: expected HOST:PORT, e.g. 127.0.0.1:9400")
    return host, int(port)


def check_address(address: str, *, anywhere: bool) -> None:
    """Refuse to speak plain text on an address that others can reach.

    Raises:
        AddressError: not HOST:PORT, or not a loopback address and `anywhere` is not given.
    """
    if not is_loopback(address) and not anywhere:
        raise AddressError(
            f"{address} can be reached by others, and --insecure sends everything in plain text; "
            f"listen on 127.0.0.1, or add --insecure-anywhere on a network that you trust"
        )


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches `HOST:PORT`; raise AddressError on another form."""
    host = split_address(address)[0].strip("[]")
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def next_port(address: str) -> str:
    """Return the address of the next port; port 0, which takes a free one, stays 0."""
    host, port = split_address(address)
    return f"{host}:{port + 1 if port else 0}"


def client_server(
    address: str, service: FederationService, credentials: grpc.ServerCredentials | None
) -> tuple[grpc.aio.Server, str]:
    """Return a server for clients, not started, and the address it is bound to."""
    server = grpc.aio.server(options=CHANNEL_OPTIONS, interceptors=[Decoding()])
    federation_pb2_grpc.add_FederationServicer_to_server(service, server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    asyncio.get_running_loop().create_task(checks.set("", health_pb2.HealthCheckResponse.SERVING))
    return server, _bind(server, address, credentials, "--listen")


def join_server(
    address: str, service: JoinService, credentials: grpc.ServerCredentials
) -> tuple[grpc.aio.Server, str]:
    """Return a server for strangers, not started, and the address it is bound to."""
    server = grpc.aio.server(
        options=JOIN_OPTIONS,
        maximum_concurrent_rpcs=JOIN_CALLS,
        interceptors=[Decoding()],
    )
    join_pb2_grpc.add_JoinServicer_to_server(service, server)
    return server, _bind(server, address, credentials, "--join-listen")


def control_server(
    address: str,
    service: ControlService,
    credentials: grpc.ServerCredentials,
    operators: OperatorsOnly,
) -> tuple[grpc.aio.Server, str]:
    """Return a control server for operators' certificates, and the address it is bound to."""
    guard = _Guard(operators)
    server = grpc.aio.server(options=CHANNEL_OPTIONS, interceptors=[guard])
    control_pb2_grpc.add_ControlServicer_to_server(service, server)
    return server, _bind(server, address, credentials, "--control-listen")


def socket_server(root: Path, service: ControlService) -> grpc.aio.Server:
    """Return the control server on the unix socket of a data directory."""
    path = control_socket(root).resolve()
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise AddressError(
            f"the control socket {path} has a path of more than {LONGEST_SOCKET_PATH} bytes, which "
            f"sockets do not allow; give a shorter --data"
        )
    path.unlink(missing_ok=True)  # the lock says that nobody listens there any more
    server = grpc.aio.server()
    control_pb2_grpc.add_ControlServicer_to_server(service, server)
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(before)
    return server


def _bind(
    server: grpc.aio.Server,
    address: str,
    credentials: grpc.ServerCredentials | None,
    option: str,
) -> str:
    port = 0
    with contextlib.suppress(RuntimeError):  # newer grpcio raises, older returns 0
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    if port == 0:
        raise AddressError(
            f"cannot listen on {address}: the port is in use, or the address is not this "
            f"machine's; give another with {option}"
        )
    return f"{address.rpartition(':')[0]}:{port}"


class _Guard(grpc.aio.ServerInterceptor):
    """Lets operators alone through to any method, so that no method can be forgotten."""

    def __init__(self, operators: OperatorsOnly) -> None:
        self._operators = operators

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Wrap the method's handler."""
        handler = await continuation(details)
        if handler is None:
            return None
        coding = handler.request_deserializer, handler.response_serializer
        method = str(details.method).rpartition("/")[2]
        if handler.response_streaming:

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                await self._check(method, context)
                async for reply in handler.unary_stream(request, context):
                    yield reply

            return grpc.unary_stream_rpc_method_handler(stream, *coding)

        async def unary(request: Any, context: Any) -> Any:
            await self._check(method, context)
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(unary, *coding)

    async def _check(self, method: str, context: Any) -> None:
        try:
            with refusals(method, context.peer()):
                self._operators.check(context)
        except RefusedError as refusal:
            await abort(context, refusal)
