"""Small models, data and tasks that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from motley.algorithms import registry
from motley.algorithms.base import Broadcast, ClientContext, Member, Moment, Tensors, Trained
from motley.models.mlp import mlp
from motley.models.units import fresh_tensors, unit_table
from motley.plan import Plan
from motley.privacy.ledger import MemoryStore, TaskPrivacy
from motley.task import TaskKind, TaskSpec
from motley.workload import DataSpec, LocalData, Scalar, Split, Variant, Workload

KEY = bytes(range(32))
SEED = 7
RELEASE: Mapping[str, Scalar] = {
    "privacy": "release",
    "epsilon": 8.0,
    "delta": 1e-5,
    "clip": 0.5,
    "noise_multiplier": 4.0,
    "weighting": "uniform",
    "local_steps": 3,
}
LDP_SGD: Mapping[str, Scalar] = {
    **RELEASE,
    "privacy": "ldp-sgd",
    "sampling_rate": 0.2,
    "batch_size": 6,
    "noise_multiplier": 1.5,
}


def _normalised() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(5, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 3)
    )


class Points(Workload):
    """Thirty random points of five numbers, three classes."""

    samples = 30

    def variants(self) -> Mapping[str, Variant]:
        return {
            "mlp": Variant(partial(mlp, inputs=5, hidden=(7,), classes=3)),
            "normalised": Variant(_normalised),
        }

    def load(self, spec: DataSpec) -> LocalData:
        rng = np.random.default_rng(3)
        inputs = rng.normal(size=(self.samples, 5)).astype(np.float32)
        targets = inputs[:, :3].argmax(axis=1).astype(np.int64)
        split = Split(inputs, targets)
        return LocalData(train=split, test=split)


def task(settings: Mapping[str, Scalar], round_: int = 1, **changes: object) -> TaskSpec:
    """Return a training task of FedAvg as a server plans it for ten rounds."""
    algorithm = registry.find("fedavg").configure(settings)
    variant = str(changes.pop("variant", "mlp"))
    table = unit_table(Points().variants()[variant].build())
    who = Member(name="c0", tier="t", variant=variant, units=table)
    plan: Plan = algorithm.plan(who, Moment(round=round_, rounds=10, seed=SEED))
    values: dict[str, object] = {
        "task_id": f"t{round_}", "kind": TaskKind.TRAIN, "run_id": "r", "run_name": "run",
        "round": round_, "rounds": 10, "algorithm": "fedavg", "workload": "points", "plan": plan,
        "run_seed": SEED, "client": "c0", "payload_sha256": bytes([round_] * 32),
        "global_variant": variant, **changes,
    }  # fmt: skip
    return TaskSpec(**values)  # type: ignore[arg-type]


def first_model(variant: str = "mlp") -> Tensors:
    return fresh_tensors(Points().variants()[variant], SEED)


def train(
    settings: Mapping[str, Scalar],
    store: MemoryStore | None = None,
    *,
    workload: Workload | None = None,
    broadcast: Tensors | None = None,
    spec: TaskSpec | None = None,
) -> Trained:
    """Run one task of FedAvg in this process."""
    workload, spec = workload or Points(), spec or task(settings)
    context = ClientContext(
        task=spec,
        workload=workload,
        data=workload.load(DataSpec("points")),
        privacy=TaskPrivacy(store or MemoryStore(KEY), spec),
    )
    values = broadcast or first_model(spec.global_variant)
    algorithm = registry.find("fedavg").configure(spec.plan.settings)
    return algorithm.train(context, Broadcast.of(values), None)


def flat(tensors: Mapping[str, object]) -> np.ndarray:
    """Return all values as one vector, float64."""
    return np.concatenate([np.ravel(np.asarray(v, np.float64)) for v in tensors.values()])
