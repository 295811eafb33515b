"""An engine without a network: real database, real files, a clock that the test moves."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedserver.model_process import run_job
from fedserver.rounds.engine import Engine
from fedserver.rounds.jobs import FoldJob
from fedserver.rounds.operations import RunDesk
from fedserver.rounds.presence import Arrival, Capabilities, Presence, Profile
from fedserver.rounds.tasks import Arrived, Receipt, TaskDesk
from fedserver.rounds.updates import check_update
from fedserver.rounds.view import run_record
from fedserver.storage.database import open_database
from fedserver.storage.payloads import PayloadStore
from motley.algorithms import registry
from motley.task import TaskSpec
from motley.wire import (
    ENCODING_NAMES,
    EncodedTensor,
    PayloadReader,
    encode_dense,
    quantize_uniform,
    write_payload,
)

Tensors = dict[str, npt.NDArray[np.generic]]

RUNFILE = """
[run]
name = "test"
algorithm = "fedavg"
rounds = {rounds}
seed = 7

[workload]
name = "digits"

[clients]
expected = {clients}
{extra_clients}

[settings]
local_steps = 2
batch_size = 10
learning_rate = 0.1

{sections}
"""


def runfile(
    *, rounds: int = 2, clients: int = 2, extra_clients: str = "", sections: str = ""
) -> str:
    """Return a run file's text."""
    return RUNFILE.format(
        rounds=rounds, clients=clients, extra_clients=extra_clients, sections=sections
    )


class ManualClock:
    """Both clocks at once; only the test moves them."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@functools.cache
def _prepared(job: str) -> tuple[str, bytes]:
    """Do a job in a child, which imports torch; return its result as JSON and the state."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        result = run_job({**json.loads(job), "out": str(out)})
        return json.dumps(result), out.read_bytes()


def run_job_once(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do what `run_job` does; an initial model that was made before is not made again."""
    if job["kind"] != "prepare" or job["init"]:
        return run_job(job)
    result, state = _prepared(json.dumps({**job, "out": ""}, sort_keys=True))
    Path(job["out"]).write_bytes(state)
    made: dict[str, Any] = json.loads(result)
    return made


class Bench:
    """An engine with everything around it but gRPC and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = ManualClock()
        self.folds: list[FoldJob] = []
        self.restart()

    def restart(self) -> None:
        """Open everything anew from the disk, as a server start does."""
        self.presence = Presence()
        self.payloads = PayloadStore(self.root)
        self.engine = Engine(
            open_database(self.root),
            self.presence,
            payload_path=self.payloads.path,
            mappings={},
            clock=self.clock,
        )
        self.desk, self.runs = TaskDesk(self.engine), RunDesk(self.engine)
        self.engine.recover()

    def arrive(
        self,
        *names: str,
        session: str = "",
        tier: str = "",
        memory: int = 2**30,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Let clients check in."""
        for name in names:
            arrival = Arrival(
                name=name,
                session=session or f"session-{name}",
                seen=self.clock.now,
                capabilities=Capabilities(
                    protocol=1,
                    wire=1,
                    algorithms=dict.fromkeys(registry.names(), 1),
                    workloads={"digits": 1},
                    encodings=ENCODING_NAMES,
                ),
                profile=Profile(cores=2, memory_bytes=memory, tier=tier, labels=labels or {}),
            )
            if self.presence.arrive(arrival):
                self.engine.enrol(arrival)

    def settle(self) -> None:
        """Run the engine and its jobs until nothing is due."""
        while (job := self.engine.tick()) is not None:
            if isinstance(job, FoldJob):
                self.folds.append(job)
            self.engine.apply(job, job.run(self.payloads))

    def submit(self, text: str) -> str:
        """Queue a run and let the engine go as far as it can."""
        run_id = self.runs.submit(text, "test")
        self.settle()
        return run_id

    def next_task(self, client: str) -> TaskSpec | None:
        """Return a client's open task, None when it has none."""
        return self.desk.next_tasks([client])[0]

    def task(self, client: str) -> TaskSpec:
        """Return a client's open task."""
        task = self.next_task(client)
        assert task is not None, f"{client} has no task"
        return task

    def broadcast(self, task: TaskSpec) -> Tensors:
        """Decode a task's broadcast."""
        table = self._table(task)
        with PayloadReader(self.payloads.path(task.payload_sha256.hex()), table) as reader:
            return {name: reader[name].decode() for name in reader.names}

    def _table(self, task: TaskSpec) -> object:
        with self.engine.database.connect() as tx:
            return self.engine.context(tx, task.run_id).global_table.tensor_table

    def encode(self, task: TaskSpec, values: Tensors) -> list[tuple[str, EncodedTensor]]:
        """Encode an update as the plan says; quantized with nearest rounding."""
        if not task.plan.sends_delta:
            return [(name, encode_dense(value)) for name, value in values.items()]
        received = self.broadcast(task)
        deltas = {name: value - received[name] for name, value in values.items()}
        if task.plan.up_bits == 32:
            return [(name, encode_dense(value)) for name, value in deltas.items()]
        return [(n, quantize_uniform(v, task.plan.up_bits, None)) for n, v in deltas.items()]

    def send(
        self, client: str, values: Tensors, *, samples: int = 10, task: TaskSpec | None = None
    ) -> Receipt:
        """Upload an update for a client's open task; raises UpdateError when it is refused."""
        task = task or self.task(client)
        path = self.root / f"{task.task_id}.update"
        info = write_payload(path, self.encode(task, values), self._table(task))
        digest = info.sha256.hex()
        ticket = self.desk.begin_upload(client, task.task_id, digest)
        if isinstance(ticket, Receipt):
            return ticket
        check_update(path, ticket)
        self.payloads.adopt(path, digest)
        return self.desk.accept(
            Arrived(
                task_id=task.task_id,
                digest=digest,
                size=info.size,
                samples=samples,
                metrics={"loss": 1.0},
                seconds=0.1,
                restarted=False,
                bytes_up=info.size,
            )
        )

    def record(self, run_id: str) -> dict:
        """Return the run's record."""
        return run_record(self.engine, run_id)

    def state(self, run_id: str) -> Tensors:
        """Decode the run's newest global state."""
        record = self.record(run_id)
        with self.engine.database.connect() as tx:
            table = self.engine.context(tx, run_id).global_table.tensor_table
        with PayloadReader(self.payloads.path(record["state"]), table) as reader:
            return {name: reader[name].decode() for name in reader.names}


def moved(values: Tensors, by: float) -> Tensors:
    """Return the values with `by` added to each."""
    return {name: (value + np.float32(by)).astype(value.dtype) for name, value in values.items()}
