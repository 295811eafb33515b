"""Tokens and windows go through the algorithms as images do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from toy import SEED, context, member, sent

from motley.algorithms.base import Algorithm
from motley.algorithms.fedavg import FedAvg
from motley.algorithms.quped import QuPeD
from motley.plan import FULL_PRECISION
from motley.training.personal import initial_tensors
from motley.workload import DataSpec, LocalData, Split, Variant, Workload
from motley.workloads.sensors import SisFall
from motley.workloads.text import NextCharacter

SETTINGS: dict[str, bool | int | float | str] = {"local_steps": 15, "batch_size": 16}


class Speech(NextCharacter):
    """The next of four letters that always follow each other."""

    def __init__(self) -> None:
        super().__init__(context=3, ngrams=2, buckets=50)

    def variants(self) -> Mapping[str, Variant]:
        bags = super().variants()
        return {"shared": bags["bag32"], "own": bags["bag16"]}

    def load(self, spec: DataSpec) -> LocalData:
        return LocalData(self._split(["abcd" * 40]), self._split(["abcd" * 10]))


class Wrist(SisFall):
    """Still windows, and windows with one hard knock."""

    def variants(self) -> Mapping[str, Variant]:
        sizes = super().variants()
        return {"shared": sizes["small"], "own": sizes["small"]}

    def load(self, spec: DataSpec) -> LocalData:
        rng = np.random.default_rng(0)
        targets = np.tile([0, 8], 40)
        inputs = rng.normal(0, 0.1, (80, 128, 6)).astype(np.float32)
        inputs[targets == 8, 60:64, :3] += 5
        return LocalData(Split(inputs[:60], targets[:60]), Split(inputs[60:], targets[60:]))


@pytest.mark.parametrize(("workload", "rate"), [(Speech(), 1.0), (Wrist(), 0.05)])
@pytest.mark.parametrize(
    ("method", "bits"), [(FedAvg, FULL_PRECISION), (QuPeD, 2)], ids=["fedavg", "quped"]
)
def test_training_learns(
    method: type[Algorithm], bits: int, workload: Workload, rate: float
) -> None:
    algorithm = method.configure({**SETTINGS, "learning_rate": rate})
    who = member(bits, "own" if method is QuPeD else "shared", workload)
    broadcast, personal, losses = (
        initial_tensors(workload.variants()["shared"], "shared", SEED),
        None,
        [],
    )
    for number in range(1, 5):
        task = context(algorithm, who, number, 4, workload)
        trained = algorithm.train(task, sent(broadcast), personal)
        broadcast, personal = trained.update, trained.personal
        losses.append(trained.metrics["loss"])
    assert losses[-1] < 0.5 * losses[0]
    if personal is not None:
        quantized = {name for name in personal if name.startswith("centres/")}
        assert quantized == {f"centres/{row.name}" for row in who.units if row.quantized}
        assert all(personal[name].size == 4 for name in quantized)
