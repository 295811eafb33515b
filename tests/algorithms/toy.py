"""A small workload in float64 and tasks for it; shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from motley.algorithms.base import (
    Algorithm,
    Broadcast,
    ClientContext,
    Member,
    Moment,
    Tensors,
    Trained,
)
from motley.models.mlp import mlp
from motley.models.units import variant_table
from motley.seeding import derive
from motley.task import TaskKind, TaskSpec
from motley.training.personal import initial_tensors
from motley.workload import DataSpec, LocalData, Split, Variant, Workload

SEED = 5
CLASSES = 4


def _double_mlp(*hidden: int) -> torch.nn.Module:
    return mlp(inputs=6, hidden=hidden, classes=CLASSES).double()


class Toy(Workload):
    """Random points of six numbers, four classes."""

    def variants(self) -> Mapping[str, Variant]:
        return {
            "shared": Variant(partial(_double_mlp, 9, 8, 7)),
            "own": Variant(partial(_double_mlp, 11, 5, 8)),
        }

    def load(self, spec: DataSpec) -> LocalData:
        rng = np.random.default_rng(3)
        inputs, targets = rng.normal(size=(40, 6)), rng.integers(0, CLASSES, 40)
        return LocalData(
            train=Split(inputs[:30], targets[:30]), test=Split(inputs[30:], targets[30:])
        )


def member(bits: int, variant: str = "own", workload: Workload | None = None) -> Member:
    made = (workload or Toy()).variants()[variant]
    table = variant_table(made)
    return Member(name="c0", tier="t", variant=variant, units=table, bits=bits)


def context(
    algorithm: Algorithm, who: Member, round_: int, rounds: int, workload: Workload | None = None
) -> ClientContext:
    """Return the training task of a client in a round."""
    workload = workload or Toy()
    task = TaskSpec(
        task_id=f"t{round_}",
        kind=TaskKind.TRAIN,
        run_id="r",
        run_name="run",
        round=round_,
        rounds=rounds,
        algorithm=algorithm.name,
        workload="toy",
        plan=algorithm.plan(who, Moment(round=round_, rounds=rounds, seed=SEED)),
        run_seed=SEED,
        client=who.name,
        global_variant="shared" if algorithm.has_global_model else "",
    )
    return ClientContext(task=task, workload=workload, data=workload.load(DataSpec("toy")))


sent = Broadcast.of
"""Values as they reach a client."""


def first_broadcast() -> Tensors:
    """Return w⁰ as a server makes it."""
    return initial_tensors(Toy().variants()["shared"], "shared", SEED)


def run(
    algorithm: Algorithm, who: Member, rounds: int, broadcast: Tensors | None = None
) -> Trained:
    """Train one client alone for some rounds; its update is the next broadcast."""
    if broadcast is None:
        broadcast = first_broadcast() if algorithm.has_global_model else {}
    personal: Tensors | None = None
    for number in range(1, rounds + 1):
        trained = algorithm.train(
            context(algorithm, who, number, rounds), sent(broadcast), personal
        )
        broadcast, personal = trained.update, trained.personal
    return trained


def draws(client: str = "c0") -> int:
    """Return a seed for a test's own draws."""
    return derive(SEED, "test", client)
