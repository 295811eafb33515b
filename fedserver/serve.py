"""The server process: listeners, threads and their orderly end."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from sqlalchemy.exc import SQLAlchemyError
from structlog.stdlib import get_logger

from fedserver.control_socket import control_socket
from fedserver.listeners import Ports, client_server, socket_server
from fedserver.listening import note
from fedserver.rounds.driver import Driver
from fedserver.rounds.engine import Engine
from fedserver.rounds.presence import Presence
from fedserver.service.callers import Callers
from fedserver.service.control import ControlService
from fedserver.service.federation import FederationService
from fedserver.service.limits import Limits
from fedserver.storage.database import DatabaseThread, lock_directory, open_database
from fedserver.storage.open_files import allow_many_files
from fedserver.storage.payloads import RESERVE, PayloadStore
from motley import __version__
from motley.allocator import reuse_freed_memory

if TYPE_CHECKING:
    from fedserver.secure import Secure
    from fedserver.watching import Watching, WatchPorts

log = get_logger()


LOOKING_SECONDS = 2.0
"""How long a start waits for commands that look at the directory of a server that was killed."""


async def serve(
    root: Path,
    address: str,
    mappings: Mapping[str, str],
    *,
    limits: Limits | None = None,
    ports: Ports | None = None,
    reserve: int = RESERVE,
    watch: WatchPorts | None = None,
    on_ready: Path | None = None,
) -> None:
    """Run a server until SIGTERM or SIGINT.

    Args:
        root: the data directory.
        address: HOST:PORT of the client listener; port 0 takes a free one.
        mappings: `module:object` by workload name.
        limits: what clients may ask for; the defaults without it.
        ports: its further ports when it works with certificates; None: plain text.
        reserve: bytes of the disk that are to stay free.
        watch: where it can be watched; None: nowhere.
        on_ready: file that gets the listeners' addresses once everything listens: the client
            port's on the first line, then `join ADDRESS`, `control ADDRESS`, `dashboard ADDRESS`
            and `metrics ADDRESS`.

    Raises:
        DataDirectoryError, AddressError, IdentityError: nothing was started.
    """
    allow_many_files()
    reuse_freed_memory(one_heap=True)
    _collect_seldom()
    lock = lock_directory(root, patience=LOOKING_SECONDS)
    payloads = PayloadStore(root, reserve=reserve)
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
    servers: list[grpc.aio.Server] = []
    federation: FederationService | None = None
    secure: Secure | None = None
    watching: Watching | None = None
    try:
        if ports is not None:
            from fedserver.secure import Secure

            secure = await Secure.open(root, sql, database, engine, ports)
        callers = secure.callers if secure else Callers()
        federation = FederationService(
            engine,
            driver,
            database,
            payloads,
            callers,
            limits=limits,
            names_are_proven=secure is not None,
        )
        credentials = secure.client_credentials if secure else None
        client_port, bound = client_server(address, federation, credentials)
        servers.append(client_port)
        listening = [bound]
        if secure:
            listening += secure.open_join_port(servers, bound)
        admission = secure.admission if secure else None
        control = ControlService(engine, driver, database, payloads, admission)
        servers.append(socket_server(root, control))
        if secure:
            listening += secure.open_control_port(servers, control)
        await database(engine.recover)
        await federation.restore()
        if watch:
            from fedserver.watching import Watching

            watching = Watching(root, engine, driver)
            await watching.open(watch, database, federation.turns)
            listening += watching.listening
        note(root, listening, insecure=secure is None)
        for server in servers:
            await server.start()
        log.info("serving", address=bound, data=str(root), version=__version__)
        if secure:
            log.info("serving_with_certificates", **dict(line.split(" ") for line in listening[1:]))
        else:
            log.warning("plain_text", address=bound, risk="others can read, alter and pretend")
        if on_ready is not None:
            on_ready.write_text("\n".join(listening))
        await _until_stopped(driver)
        log.info("stopping")
    finally:
        if watching:
            await watching.close()
        for server in servers:
            await server.stop(grace=0.5)
        if secure:
            secure.close()
        driver.close()
        try:
            await database(engine.save_time_left)
        except SQLAlchemyError as error:
            # The time that was noted last stands: clients get a few seconds more.
            log.error("time_left_not_saved", reason=str(error))
        try:
            if federation:
                await federation.close()
        except SQLAlchemyError as error:
            log.error("traffic_not_saved", reason=str(error))
        database.close()
        sql.dispose()
        control_socket(root).unlink(missing_ok=True)
        lock.close()


def _collect_seldom() -> None:
    """Look for garbage in cycles seldom, and never among what was loaded at the start.

    Calls are held by the thousand, so that a full collection has a million objects to look at,
    and every check-in waits for it. Reference counts free most; what refused calls leave in cycles
    adds up, so that a hundred times rarer still let 10,000 hostile inputs grow memory by 16 %.
    """
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


async def _until_stopped(driver: Driver) -> None:
    """Drive the engine until a signal comes; raise what ends the driver otherwise."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    driving = asyncio.create_task(driver.run())
    stopping = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({driving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # Also when this is cancelled: a driver whose threads have ended would call that a failure.
        ended = driving if driving.done() else None
        for task in (driving, stopping):
            task.cancel()
        await asyncio.gather(driving, stopping, return_exceptions=True)
    if ended is not None:
        ended.result()
