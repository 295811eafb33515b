"""What client tests share: options over a scratch state directory, payloads, a running daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_server import FakeServer

from fedclient.channel import open_channel
from fedclient.daemon import Daemon, Pace, make_desk
from fedclient.desk import Desk
from fedclient.device import Device
from fedclient.options import ClientOptions
from fedclient.profile import Measurement
from fedclient.state import StateDirectory
from fedclient.transfer.peer import Patience

HERE = Path(__file__).parent
QUICK = Patience(idle_seconds=5.0, call_seconds=5.0, poll_seconds=5.0)


class NoWait(random.Random):
    """Jitter that makes every back-off a hundredth of a second."""

    def uniform(self, a: float, b: float) -> float:
        return 0.01


@pytest.fixture(autouse=True)
def _importable_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *([before] if before else [])]))


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., ClientOptions]:
    def make(server: FakeServer, **changes: object) -> ClientOptions:
        values = {
            "server": server.address,
            "name": "phone-1",
            "data": "synthetic",
            "state": tmp_path / "state",
            "workloads": {"linear": "linear_workload:Linear"},
            "threads": 1,
            **changes,
        }
        return ClientOptions(**values)  # type: ignore[arg-type]

    return make


@pytest.fixture
def desk() -> Callable[[ClientOptions], contextlib.AbstractAsyncContextManager[Desk]]:
    """A desk over an open state directory, with instant back-offs and a ready-made profile."""

    @contextlib.asynccontextmanager
    async def make(options: ClientOptions) -> AsyncIterator[Desk]:
        async def measured(*_: object) -> Measurement:
            return Measurement(workloads={"linear": 3})

        state = StateDirectory(options.state)
        state.open(options.name)
        device = Device(options, state.root / "profile.json", measure=measured)
        await device.load()
        channel = open_channel(options.server)
        made = make_desk(options, state, device, channel, rng=NoWait(), patience=QUICK)
        try:
            yield made
        finally:
            await made.runner.stop()
            await channel.close()
            state.close()

    return make


@pytest.fixture
def daemon(desk: Callable[..., object]) -> Callable[..., object]:
    """A running loop in this process; its training process is a real one."""

    @contextlib.asynccontextmanager
    async def make(options: ClientOptions, heartbeat: float = 30.0) -> AsyncIterator[Desk]:
        async with desk(options) as made:  # type: ignore[attr-defined]
            loop = Daemon(made, Pace(heartbeat_seconds=heartbeat))
            running = asyncio.create_task(loop.run())
            try:
                yield made
                if running.done():
                    running.result()
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    return make


@pytest.fixture(scope="session")
def linear_broadcast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """A broadcast for the model of `linear_workload`."""
    import torch

    from motley.models.units import unit_table
    from motley.wire import encode_dense, write_payload

    table = unit_table(torch.nn.Linear(4, 3)).tensor_table
    path = tmp_path_factory.mktemp("broadcast") / "payload"
    tensors = [(row.name, encode_dense(np.zeros(row.shape, row.dtype))) for row in table]
    write_payload(path, tensors, table)
    return path.read_bytes()
