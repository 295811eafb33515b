"""What a server with certificates has besides: authority, registry, join port, control port."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
from sqlalchemy import Engine as SqlEngine

from fedserver.identity import tls
from fedserver.identity.authority import Authority
from fedserver.identity.operators import Operators
from fedserver.identity.rates import Knocks
from fedserver.identity.registry import Registry
from fedserver.listeners import Ports, control_server, join_server, split_address
from fedserver.rounds.engine import Engine
from fedserver.service.callers import Callers, OperatorsOnly
from fedserver.service.control import ControlService
from fedserver.service.identity import Admission
from fedserver.service.join import JoinService
from fedserver.storage.database import DatabaseThread


class Secure:
    """The parts that exist only with certificates, and how they hang together."""

    def __init__(
        self,
        root: Path,
        database: DatabaseThread,
        engine: Engine,
        ports: Ports,
        registry: Registry,
    ) -> None:
        self._root, self._database, self._engine, self._ports = root, database, engine, ports
        self._registry, self._authority = registry, registry.authority
        self.callers = Callers(registry, engine.clock)
        self.client_credentials = tls.mutual(self._authority)
        self._join_address = ""
        self._fresh = asyncio.create_task(tls.keep_fresh(self._authority))

    @classmethod
    async def open(
        cls, root: Path, sql: SqlEngine, database: DatabaseThread, engine: Engine, ports: Ports
    ) -> Secure:
        """Load the authority and the registry; raise IdentityError when they are not whole."""
        authority = await asyncio.to_thread(Authority, root, engine.clock)
        registry = await database(Registry, sql, authority, engine.clock)
        return cls(root, database, engine, ports, registry)

    def open_join_port(self, servers: list[grpc.aio.Server], bound: str) -> list[str]:
        """Add the join port when it is wanted; return its line for the ready file.

        Args:
            servers: gets the new server.
            bound: address of the client port.
        """
        if not self._ports.join:
            return []
        settings = self._authority.settings
        service = JoinService(
            self._registry,
            self._database,
            self.callers,
            self._engine.presence,
            Knocks(self._engine.clock.monotonic),
            server=settings.address(settings.port or split_address(bound)[1]),
        )
        server, at = join_server(self._ports.join, service, tls.one_sided(self._authority))
        servers.append(server)
        port = settings.port + 1 if settings.port else split_address(at)[1]
        self._join_address = settings.address(port)
        return [f"join {at}"]

    @property
    def admission(self) -> Admission:
        """What the control service needs; complete once the join port is bound."""
        return Admission(
            registry=self._registry, callers=self.callers, join_address=self._join_address
        )

    def open_control_port(
        self, servers: list[grpc.aio.Server], service: ControlService
    ) -> list[str]:
        """Add the control port over TCP when it is wanted; return its line for the ready file."""
        if not self._ports.control:
            return []
        operators = OperatorsOnly(Operators(self._root), self._engine.clock)
        credentials = tls.mutual(self._authority)
        server, at = control_server(self._ports.control, service, credentials, operators)
        servers.append(server)
        return [f"control {at}"]

    def close(self) -> None:
        """Stop renewing the server's certificate."""
        self._fresh.cancel()
