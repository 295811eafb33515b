"""The service's transfers over real sockets, without runs: one big tensor, any task."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import grpc
import numpy as np

from fedclient.channel import open_channel
from fedclient.outbox import Outbox, Update, UpdateMeta
from fedclient.transfer.peer import Patience, Peer
from fedclient.transfer.speed import LinkRecord
from fedclient.transfer.stub import ClientStub
from fedserver.listeners import CHANNEL_OPTIONS
from fedserver.rounds.clock import Clock
from fedserver.rounds.engine import Engine
from fedserver.rounds.presence import Presence
from fedserver.rounds.tasks import Arrived, Receipt, Ticket
from fedserver.service.callers import Callers
from fedserver.service.decoding import Decoding
from fedserver.service.federation import FederationService
from fedserver.service.limits import Limits
from fedserver.storage.database import DatabaseThread, open_database
from fedserver.storage.payloads import PayloadStore
from motley.models.units import TensorInfo, UnitTable
from motley.plan import Plan
from motley.wire import encode_dense, write_payload
from motley.wire.stubs import common_pb2, federation_pb2_grpc

MIB = 1 << 20


class NoWait(random.Random):
    """Jitter that makes every back-off a hundredth of a second."""

    def uniform(self, a: float, b: float) -> float:
        return 0.01


class AnyTask:
    """Takes every task for an open one; remembers what was accepted."""

    def __init__(self, table: UnitTable, state: Path) -> None:
        self.table, self.state = table, state
        self.accepted: list[Arrived] = []
        self.counted = 0

    def begin_upload(self, client: str, task_id: str, digest: str) -> Ticket:
        return Ticket(
            task_id=task_id,
            client=client,
            plan=Plan(variant="big"),
            table=self.table,
            state=self.state,
            max_norm=None,
        )

    def accept_all(self, updates: Sequence[Arrived]) -> list[Receipt]:
        self.accepted += updates
        return [Receipt.ACCEPTED] * len(updates)

    def may_download(self, client: str, task_id: str, digest: str) -> None:
        pass

    def count_downloads(self, sent: Mapping[str, int]) -> None:
        self.counted += sum(sent.values())


class TransferRig:
    """A server in this process with a payload of about `mib` MiB, and clients to it."""

    def __init__(
        self, root: Path, mib: int, *, clock: Clock | None = None, limits: Limits | None = None
    ) -> None:
        self.root = root
        size = mib * MIB // 4
        self.table = UnitTable((TensorInfo("w", (size,), "float32", "w", True),))
        root.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(mib).normal(size=size).astype(np.float32)
        self.payload = root / "payload"
        write_payload(self.payload, [("w", encode_dense(values))], self.table.tensor_table)
        self.size = self.payload.stat().st_size
        self.digest = hashlib.sha256(self.payload.read_bytes()).digest()
        self.store, self.database = PayloadStore(root / "server"), DatabaseThread()
        self.engine = Engine(
            open_database(root / "server"),
            Presence(),
            payload_path=self.store.path,
            mappings={},
            clock=clock,
        )
        self.desk = AnyTask(self.table, self.payload)
        self.service = FederationService(
            self.engine, None, self.database, self.store, Callers(), limits=limits
        )
        self.service._uploads._desk = self.desk
        self.service._downloads._desk = self.desk

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve; gives the address."""
        target = self.store.path(self.digest.hex())
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(self.payload.read_bytes())
        server = grpc.aio.server(options=CHANNEL_OPTIONS, interceptors=[Decoding()])
        federation_pb2_grpc.add_FederationServicer_to_server(self.service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0)
            await self.service.close()
            self.database.close()

    @property
    def ref(self) -> common_pb2.PayloadRef:
        return common_pb2.PayloadRef(sha256=self.digest, size=self.size)

    def update(self, task_id: str = "task-1") -> Update:
        """Commit the payload to an outbox as a finished training would."""
        outbox = Outbox(self.root / "outbox")
        outbox.prepare(task_id).write_bytes(self.payload.read_bytes())
        return outbox.commit(
            UpdateMeta(
                task_id=task_id,
                run_id="run-1",
                run_name="big",
                round=1,
                sha256=self.digest.hex(),
                size=self.size,
                samples=10,
                train_seconds=1.0,
            )
        )

    @contextlib.asynccontextmanager
    async def client(
        self, address: str, name: str = "c0", **patience: float
    ) -> AsyncIterator[tuple[Peer, LinkRecord]]:
        """A client's side of transfers: who it is, and its link."""
        async with open_channel(address) as channel:
            peer = Peer(
                stub=ClientStub(channel),
                name=name,
                session=f"session-{name}",
                rng=NoWait(),
                patience=Patience(**{"idle_seconds": 30.0, **patience}),
            )
            yield peer, LinkRecord(self.root / f"link-{name}.json")


async def until(condition: object, what: str, seconds: float = 60.0) -> None:
    """Wait until a condition holds; fail with `what`."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():  # type: ignore[operator]
        assert asyncio.get_running_loop().time() < end, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.01)
