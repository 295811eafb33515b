"""What a run must have come to: every update computed again in this one process, and folded.

Independent of the system's networking, storage and stored updates: from the run file, the
participants that the record names and the clients' data alone. The fold is written out here; only
the client half (`motley.execution`) and the payload format are the product's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fleet import TIERS, data_of
from tiny_workload import Tiny

from fedserver.rounds.context import ModelInfo, RunContext
from motley.algorithms import registry
from motley.algorithms.base import Moment, Tensors, UpdateFacts
from motley.execution.executor import Executor, Outcome
from motley.models.units import fresh_tensors, unit_table
from motley.plan import FULL_PRECISION, Plan
from motley.runfile import parse
from motley.seeding import derive, numpy_generator
from motley.task import TaskKind, TaskSpec
from motley.wire import PayloadReader, encode_dense, quantize_uniform, write_payload
from motley.workload import DataSpec

PROFILE = {
    "download_bytes_per_second": 0.0,
    "upload_bytes_per_second": 0.0,
    "storage_free_bytes": 0,
    "memory_bytes": 0,
    "probe_gflops": 0.0,
}
"""Of every client: no plan here depends on it."""


class _Memory:
    """One personal state to start from, one that comes out."""

    def __init__(self, base: Tensors | None) -> None:
        self._base, self.saved = base, None

    saved: Tensors | None

    def load(self, version: str) -> Tensors | None:
        return self._base

    def save(self, version: str, tensors: Tensors) -> None:
        self.saved = {name: values.copy() for name, values in tensors.items()}


@dataclass(frozen=True)
class Trained:
    """One client's work in one round."""

    digest: str
    """SHA-256 of the encoded update, hex."""
    values: Tensors
    """The update decoded: values, or differences."""
    outcome: Outcome
    personal: Tensors | None
    trace: str
    """Names everything that the personal state came from."""


@dataclass
class Expected:
    """What the record must say."""

    states: list[str] = field(default_factory=list)
    """Digest of the global state after each round."""
    updates: list[dict[str, str]] = field(default_factory=list)
    """Digest of each counted update, by client, for each round."""
    personal: dict[str, Tensors] = field(default_factory=dict)
    """Each client's last counted personal state."""


class Reference:
    """Runs of one run file; what was computed once is kept for other runs of it."""

    def __init__(self, text: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        self._folder, self._workload = folder, Tiny()
        variants = self._workload.variants()
        runfile = parse(text)
        tables = {name: unit_table(v.build(), v.quantized) for name, v in variants.items()}
        default = next(iter(variants))
        chosen = runfile.run.global_variant or default
        self._context = RunContext(
            id="reference",
            name="reference",
            runfile=runfile,
            algorithm=registry.find(runfile.run.algorithm).configure(runfile.settings),
            model=ModelInfo(
                workload_version=1, default_variant=default, global_variant=chosen, tables=tables
            ),
        )
        self._tiers = {tier.name: tier for tier in runfile.tiers}
        self._executors: dict[str, Executor] = {}
        self._memo: dict[tuple[str, int, str, str], Trained] = {}
        initial = fresh_tensors(variants[chosen], derive(runfile.run.seed, "init", chosen))
        self._initial = self._store(initial)

    def run(self, participants: list[list[str]]) -> Expected:
        """Return what rounds come to that counted these clients, round by round."""
        expected, state = Expected(), self._initial
        traces: dict[str, str] = {}
        for number, names in enumerate(participants, start=1):
            done = {}
            for name in sorted(names):
                base = traces.get(name, "")
                done[name] = self._train(state, number, name, base, expected.personal.get(name))
            state = self._fold(state, done)
            for name, trained in done.items():
                traces[name] = trained.trace
                if trained.personal is not None:
                    expected.personal[name] = trained.personal
            expected.states.append(state)
            expected.updates.append({name: trained.digest for name, trained in done.items()})
        return expected

    # --- one client --------------------------------------------------------------------------

    def _train(
        self, state: str, number: int, name: str, base: str, personal: Tensors | None
    ) -> Trained:
        key = (state, number, name, base)
        if key not in self._memo:
            self._memo[key] = self._trained(state, number, name, base, personal)
        return self._memo[key]

    def _trained(
        self, state: str, number: int, name: str, base: str, personal: Tensors | None
    ) -> Trained:
        task = self._task(state, number, name, base)
        store, update = _Memory(personal), self._folder / "update"
        outcome = self._executor(name).run(
            task,
            personal=store,
            broadcast=self._broadcast(state, number, task.plan.down_bits),
            update=update,
            model=update,
        )
        assert outcome.payload is not None
        assert not outcome.restarted
        with PayloadReader(update, self._context.global_table.tensor_table) as reader:
            values = {key: reader[key].decode() for key in reader.names}
        update.unlink()
        trace = hashlib.sha256(f"{state} {number} {name} {base}".encode()).hexdigest()
        return Trained(outcome.payload.sha256.hex(), values, outcome, store.saved, trace)

    def _task(self, state: str, number: int, name: str, base: str) -> TaskSpec:
        context, run = self._context, self._context.runfile.run
        tier = TIERS[name] if TIERS[name] in self._tiers else next(iter(self._tiers))
        row = SimpleNamespace(
            client=name, tier=tier, variant=context.variant_for(self._tiers[tier]), profile=PROFILE
        )
        member = context.member(row, index=0, clients=1)
        plan = context.algorithm.plan(
            member, Moment(round=number, rounds=run.rounds, seed=run.seed)
        )
        return TaskSpec(
            task_id=f"reference-{number}-{name}",
            kind=TaskKind.TRAIN,
            run_id=context.id,
            run_name=context.name,
            round=number,
            rounds=run.rounds,
            algorithm=run.algorithm,
            workload="tiny",
            plan=plan,
            run_seed=run.seed,
            client=name,
            payload_sha256=bytes.fromhex(state),
            base_version=base,
            fresh_if_lost=False,
            global_variant=context.prepared.global_variant,
        )

    def _executor(self, name: str) -> Executor:
        if name not in self._executors:
            data = self._workload.load(DataSpec.parse(data_of(name)))
            self._executors[name] = Executor(self._workload, data)
        return self._executors[name]

    # --- the server's part -------------------------------------------------------------------

    def _broadcast(self, state: str, number: int, bits: int) -> Path:
        if bits == FULL_PRECISION:
            return self._folder / state
        path = self._folder / f"{state}-{number}-{bits}"
        if not path.exists():
            seed = self._context.runfile.run.seed
            encoded = [
                (
                    name,
                    quantize_uniform(
                        values, bits, numpy_generator(seed, "broadcast", number, bits, name)
                    ),
                )
                for name, values in self._load(state).items()
            ]
            write_payload(path, encoded, self._context.global_table.tensor_table)
        return path

    def _fold(self, state: str, done: Mapping[str, Trained]) -> str:
        """Weighted mean in order of name, one client after another, in float32."""
        algorithm, old = self._context.algorithm, self._load(state)
        scalars = {
            name: algorithm.measure(
                UpdateFacts(
                    samples=t.outcome.samples, metrics=t.outcome.metrics, plan=Plan(variant="")
                )
            )
            for name, t in done.items()
        }
        coefficients = algorithm.coefficients(scalars)
        weights = np.array([float(_number(coefficients[n])) for n in sorted(done)], np.float64)
        relative = (weights / weights.max()).astype(np.float32)
        new: dict[str, Any] = {}
        for name, before in old.items():
            total = np.zeros_like(before)
            for index, client in enumerate(sorted(done)):
                values = done[client].values[name]
                if self._sends_differences:
                    values = values + before
                weighted = values * relative[index]
                total = weighted if index == 0 else total + weighted
            new[name] = total / relative.sum(dtype=np.float32)
        return self._store(new)

    @property
    def _sends_differences(self) -> bool:
        wire = self._context.runfile.wire
        return {wire.up_bits, wire.down_bits} != {FULL_PRECISION}

    def _store(self, tensors: Mapping[str, Any]) -> str:
        table = self._context.global_table
        path = self._folder / "state"
        encoded = [(row.name, encode_dense(tensors[row.name])) for row in table.rows]
        digest = write_payload(path, encoded, table.tensor_table).sha256.hex()
        path.replace(self._folder / digest)
        return digest

    def _load(self, state: str) -> Tensors:
        table = self._context.global_table.tensor_table
        with PayloadReader(self._folder / state, table) as reader:
            return {name: reader[name].decode() for name in reader.names}


def _number(coefficient: Any) -> float:
    assert isinstance(coefficient, int | float), "this reference knows one weight a client"
    return float(coefficient)
