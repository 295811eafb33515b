"""Rounds of FedP3 with the engine's own jobs and the clients' executor, without a network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedserver.rounds.context import ModelInfo, RunContext
from fedserver.rounds.jobs import CountedUpdate, FoldJob, Form, OpenJob
from fedserver.rounds.tasks import Ticket
from fedserver.rounds.updates import check_update
from fedserver.storage.payloads import PayloadStore
from motley.algorithms import registry
from motley.algorithms.base import Member, Moment, UpdateFacts
from motley.device import Hardware, Link
from motley.execution.executor import Executor
from motley.models.cnn import cnn1_1024
from motley.models.mlp import mlp
from motley.models.units import fresh_tensors, variant_table
from motley.plan import Plan
from motley.runfile import parse
from motley.task import TaskKind, TaskSpec
from motley.wire import PayloadReader, encode_dense, write_payload
from motley.workload import DataSpec, LocalData, Split, Variant, Workload

Tensors = dict[str, npt.NDArray[np.generic]]


class Points(Workload):
    """Random points in 12 dimensions, other ones for each client, or images for the paper's CNN."""

    def variants(self) -> Mapping[str, Variant]:
        return {
            "mlp": Variant(partial(mlp, inputs=12, hidden=(10, 9, 8, 7), classes=4)),
            "cnn": Variant(partial(cnn1_1024, channels=3, classes=10, side=32)),
        }

    def load(self, spec: DataSpec) -> LocalData:
        rng = np.random.default_rng(int(spec.options.get("client", 0)))
        shape = (3, 32, 32) if spec.location == "images" else (12,)
        inputs = rng.normal(size=(24, *shape)).astype(np.float32)
        targets = rng.integers(0, 4, 24)
        return LocalData(
            train=Split(inputs[:16], targets[:16]), test=Split(inputs[16:], targets[16:])
        )


TEXT = """
[run]
name = "test"
algorithm = "fedp3"
rounds = 5
seed = 7
[workload]
name = "points"
[clients]
expected = 4
[settings]
local_steps = 3
batch_size = 8
learning_rate = 0.1
{settings}
{sections}
"""


class Memory:
    """A client's personal state between rounds."""

    def __init__(self) -> None:
        self.saved: Tensors | None = None

    def load(self, version: str) -> Tensors | None:
        return self.saved

    def save(self, version: str, tensors: Tensors) -> None:
        self.saved = dict(tensors)


class Lab:
    """One run of `clients` clients."""

    def __init__(
        self,
        root: Path,
        settings: str = "",
        sections: str = "",
        *,
        variant: str = "mlp",
        clients: int = 4,
        link: Link | None = None,
        hardware: Hardware | None = None,
    ) -> None:
        runfile = parse(TEXT.format(settings=settings, sections=sections))
        algorithm = registry.find("fedp3").configure(runfile.settings)
        self.workload, self.variant = Points(), variant
        made = self.workload.variants()[variant]
        self.table = variant_table(made)
        self.context = RunContext(
            id="r",
            name="test",
            runfile=runfile,
            algorithm=algorithm,
            model=ModelInfo(
                workload_version=1,
                default_variant=variant,
                global_variant=variant,
                tables={variant: self.table},
            ),
        )
        wire, tiers = runfile.wire, runfile.tiers
        self.members = [
            Member(
                name=f"c{index}",
                tier=tiers[index % len(tiers)].name,
                settings=tiers[index % len(tiers)].settings,
                variant=variant,
                units=self.table,
                up_bits=wire.up_bits,
                down_bits=wire.down_bits,
                link=link or Link(),
                hardware=hardware or Hardware(),
                index=index,
                clients=clients,
            )
            for index in range(clients)
        ]
        self.payloads, self.root = PayloadStore(root), root
        self.personal = {member.name: Memory() for member in self.members}
        self.state = self._store(fresh_tensors(made, 11))
        self.broadcasts: dict[str, Path] = {}
        self.updates: dict[str, Path] = {}
        self.fold: FoldJob | None = None
        self.metrics: dict[str, Mapping[str, float]] = {}

    def _store(self, tensors: Tensors) -> str:
        path = self.root / "state"
        encoded = [(name, encode_dense(values)) for name, values in tensors.items()]
        digest = write_payload(path, encoded, self.table.tensor_table).sha256.hex()
        self.payloads.adopt(path, digest)
        return digest

    def moment(self, number: int = 1) -> Moment:
        return Moment(round=number, rounds=5, seed=self.context.runfile.run.seed, deadline=100.0)

    def plan(self, member: Member, number: int = 1) -> Plan:
        return self.context.algorithm.plan(member, self.moment(number))

    def open(self, number: int = 1) -> dict[str, Path]:
        """Encode the broadcasts; return each client's payload."""
        plans = {member.name: self.plan(member, number) for member in self.members}
        job = OpenJob(
            context=self.context,
            round_id=number,
            round=number,
            state=self.state,
            forms=frozenset(Form.of(plan) for plan in plans.values()),
        )
        digests = job.run(self.payloads)
        self.broadcasts = {
            name: self.payloads.path(digests[Form.of(plan)]) for name, plan in plans.items()
        }
        return self.broadcasts

    def task(self, member: Member, number: int, kind: TaskKind, subject: str = "") -> TaskSpec:
        return TaskSpec(
            task_id=f"t-{number}-{member.name}",
            kind=kind,
            run_id="r",
            run_name="test",
            round=number,
            rounds=5,
            algorithm="fedp3",
            workload="points",
            plan=self.plan(member, number),
            run_seed=self.context.runfile.run.seed,
            client=member.name,
            payload_sha256=b"x" if kind is not TaskKind.FINISH else b"",
            base_version="x" if self.personal[member.name].saved else "",
            subject=subject,
            global_variant=self.variant,
        )

    def train(self, member: Member, number: int = 1) -> Path:
        """Do one client's task; return its update."""
        update = self.root / f"{member.name}.update"
        outcome = self.executor(member).run(
            self.task(member, number, TaskKind.TRAIN),
            personal=self.personal[member.name],
            broadcast=self.broadcasts[member.name],
            update=update,
            model=self.root / "model",
        )
        self.metrics[member.name] = outcome.metrics
        return update

    def executor(self, member: Member) -> Executor:
        location = "images" if self.variant == "cnn" else "points"
        spec = DataSpec(location, {"client": str(member.index)})
        return Executor(self.workload, self.workload.load(spec))

    def ticket(self, member: Member, number: int = 1) -> Ticket:
        return Ticket(
            task_id=f"t-{number}-{member.name}",
            client=member.name,
            plan=self.plan(member, number),
            table=self.table,
            state=self.payloads.path(self.state),
            max_norm=None,
            run_seed=self.context.runfile.run.seed,
            round=number,
            wants_distances=self.context.algorithm.wants_distances,
        )

    def round(self, number: int = 1, members: list[Member] | None = None) -> Tensors:
        """Do a whole round; return the new global state."""
        self.open(number)
        counted = []
        for member in members or self.members:
            path = self.train(member, number)
            found = check_update(path, self.ticket(member, number))
            with PayloadReader(path, self.table.tensor_table) as reader:
                digest = reader.info.sha256.hex()
            self.payloads.adopt(path, digest)
            self.updates[member.name] = self.payloads.path(digest)
            plan = self.plan(member, number)
            facts = UpdateFacts(samples=16, metrics={}, plan=plan, distances=found.distances)
            scalars = self.context.algorithm.measure(facts)
            counted.append(
                CountedUpdate(client=member.name, digest=digest, plan=plan, scalars=scalars)
            )
        self.fold = FoldJob(
            context=self.context,
            round_id=number,
            round=number,
            state=self.state,
            updates=counted,
        )
        self.state, _ = self.fold.run(self.payloads)
        return self.tensors()

    def tensors(self) -> Tensors:
        """Decode the global state."""
        return self.read(self.payloads.path(self.state))

    def read(self, path: Path) -> Tensors:
        with PayloadReader(path, self.table.tensor_table) as reader:
            return {name: tensor.decode() for name, tensor in reader.items()}

    def values(self, path: Path) -> int:
        """Count the values that a payload carries."""
        with PayloadReader(path, self.table.tensor_table) as reader:
            return sum(
                tensor.size if tensor.kept is None else tensor.kept.size
                for _, tensor in reader.items()
            )
