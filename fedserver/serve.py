"""The server process: listeners, threads and their orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import resource
import signal
from collections.abc import Mapping
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from structlog.stdlib import get_logger

from fedserver.errors import AddressError
from fedserver.rounds.driver import Driver
from fedserver.rounds.engine import Engine
from fedserver.rounds.presence import Presence
from fedserver.service.callers import Callers
from fedserver.service.control import ControlService
from fedserver.service.decoding import RefuseUndecodable
from fedserver.service.federation import FederationService
from fedserver.storage.database import DatabaseThread, lock_directory, open_database
from fedserver.storage.payloads import PayloadStore
from motley import __version__
from motley.wire.stubs import control_pb2_grpc, federation_pb2_grpc

log = get_logger()

# Clients ping every 20 s, also while they only wait; the server must allow that, or it would
# answer with GOAWAY "too many pings".
CHANNEL_OPTIONS = [
    ("grpc.so_reuseport", 0),  # two servers on one port would share its clients at random
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
]
LONGEST_SOCKET_PATH = 100
"""Unix socket paths end at 107 bytes on Linux, 103 elsewhere."""


def control_socket(root: Path) -> Path:
    """Return the control socket of a data directory."""
    return root / "control.sock"


def check_address(address: str, *, anywhere: bool) -> None:
    """Refuse to speak plain text on an address that others can reach.

    Raises:
        AddressError: not HOST:PORT, or not a loopback address and `anywhere` is not given.
    """
    host, separator, port = address.rpartition(":")
    host = host.strip("[]")
    if not separator or not host or not port.isdigit():
        raise AddressError(f"address {address!r}: expected HOST:PORT, e.g. 127.0.0.1:9400")
    loopback = host == "localhost"
    with contextlib.suppress(ValueError):
        loopback = loopback or ipaddress.ip_address(host).is_loopback
    if not loopback and not anywhere:
        raise AddressError(
            f"{address} can be reached by others, and --insecure sends everything in plain text; "
            f"listen on 127.0.0.1, or add --insecure-anywhere on a network that you trust"
        )


async def serve(
    root: Path, address: str, mappings: Mapping[str, str], *, on_ready: Path | None = None
) -> None:
    """Run a server until SIGTERM or SIGINT.

    Args:
        root: the data directory.
        address: HOST:PORT of the client listener; port 0 takes a free one.
        mappings: `module:object` by workload name.
        on_ready: file that gets the client listener's address once everything listens.

    Raises:
        DataDirectoryError, AddressError: nothing was started.
    """
    _allow_many_files()
    lock = lock_directory(root)
    payloads = PayloadStore(root)
    sql = open_database(root)
    database = DatabaseThread()
    drivers: list[Driver] = []
    engine = Engine(
        sql,
        Presence(),
        payload_path=payloads.path,
        mappings=mappings,
        notify=lambda clients: drivers[0].wake(clients),
    )
    driver = Driver(engine, database, payloads)
    drivers.append(driver)
    federation = FederationService(engine, driver, database, payloads, Callers())
    servers: list[grpc.aio.Server] = []
    try:
        client_port, bound = _client_server(address, federation)
        servers.append(client_port)
        servers.append(_control_server(root, ControlService(engine, driver, database, payloads)))
        await database(engine.recover)
        payloads.forget_incoming(
            task_id for ids in engine.tasks_in_hand().values() for task_id in ids
        )
        for server in servers:
            await server.start()
        log.info("serving", address=bound, data=str(root), version=__version__)
        if on_ready is not None:
            on_ready.write_text(bound)
        await _until_stopped(driver)
        log.info("stopping")
    finally:
        for server in servers:
            await server.stop(grace=0.5)
        federation.close()
        driver.close()
        await database(engine.save_time_left)
        database.close()
        sql.dispose()
        control_socket(root).unlink(missing_ok=True)
        lock.close()


def _allow_many_files() -> None:
    """Raise the limit of open files as far as it goes: a fold opens every counted update."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _client_server(address: str, service: FederationService) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server(options=CHANNEL_OPTIONS, interceptors=[RefuseUndecodable()])
    federation_pb2_grpc.add_FederationServicer_to_server(service, server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    asyncio.get_running_loop().create_task(checks.set("", health_pb2.HealthCheckResponse.SERVING))
    port = 0
    with contextlib.suppress(RuntimeError):  # newer grpcio raises, older returns 0
        port = server.add_insecure_port(address)
    if port == 0:
        raise AddressError(
            f"cannot listen on {address}: the port is in use, or the address is not this "
            f"machine's; give another with --listen"
        )
    return server, f"{address.rpartition(':')[0]}:{port}"


def _control_server(root: Path, service: ControlService) -> grpc.aio.Server:
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


async def _until_stopped(driver: Driver) -> None:
    """Drive the engine until a signal comes; raise what ends the driver otherwise."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    driving = asyncio.create_task(driver.run())
    stopping = asyncio.create_task(stopped.wait())
    done, pending = await asyncio.wait({driving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
