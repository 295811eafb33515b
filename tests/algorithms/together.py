"""Contexts of a few clients with uneven data, for tests of training together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from motley.algorithms.base import Algorithm, Broadcast, ClientContext
from motley.models.units import fresh_tensors
from motley.plan import Plan
from motley.task import TaskKind, TaskSpec
from motley.training.accelerator import compute_exactly
from motley.workload import LocalData, Scalar, Split, Variant, Workload
from motley.workloads.digits import Digits

SIZES = (17, 40, 23, 9)
DEVICE = os.environ.get("MOTLEY_TEST_DEVICE", "cpu")
"""What clients of these tests train on; "cuda" runs them on a GPU."""
compute_exactly(DEVICE)
IN_DOUBLES = 1e-7
"""Bound for `DoubleDigits`; batches' weights and a few others stay in single precision."""


class DoubleDigits(Digits):
    """Digits for models in double precision.

    Through twenty normalised layers the last digits of single precision, which depend on the
    processor, grow beyond any bound that would find a mistake.
    """

    def variants(self) -> Mapping[str, Variant]:
        """Return the same variants with float64 values."""
        return {
            name: replace(variant, build=lambda variant=variant: variant.build().double())
            for name, variant in super().variants().items()
        }


def contexts(
    workload: Workload,
    algorithm: Algorithm,
    variant: str,
    *,
    bits: Mapping[str, int] | None = None,
    sizes: Sequence[int] = SIZES,
    shape: tuple[int, ...] = (1, 8, 8),
    round_number: int = 1,
    rounds: int = 4,
) -> list[ClientContext]:
    """Return one context a client, with random data of these sizes."""
    kind = np.float64 if isinstance(workload, DoubleDigits) else np.float32
    made = []
    for number, size in enumerate(sizes):
        rng = np.random.default_rng(number)
        split = Split(
            rng.random((size, *shape), np.float32).astype(kind),
            rng.integers(0, 10, size).astype(np.int64),
        )
        settings: dict[str, Scalar] = algorithm.settings.model_dump(exclude_none=True)
        task = TaskSpec(
            task_id=f"t-{number}",
            kind=TaskKind.TRAIN,
            run_id="r",
            run_name="run",
            round=round_number,
            rounds=rounds,
            algorithm=algorithm.name,
            workload="w",
            plan=Plan(
                variant=variant,
                bits=bits or {},
                settings=settings,
                iteration=(round_number - 1) * algorithm.local_steps,
                iterations=rounds * algorithm.local_steps,
            ),
            run_seed=3,
            client=f"client-{number}",
            global_variant=variant if algorithm.has_global_model else "",
        )
        made.append(
            ClientContext(task=task, workload=workload, data=LocalData(split, split), device=DEVICE)
        )
    return made


def global_model(workload: Workload, variant: str, seed: int = 1) -> Broadcast:
    """Return a freshly drawn model as it is sent."""
    return Broadcast.of(fresh_tensors(workload.variants()[variant], seed))


def assert_close(found: Mapping[str, object], expected: Mapping[str, object], bound: float) -> None:
    """Compare tensors by name; `bound` is on the largest difference, absolute."""
    assert list(found) == list(expected)
    for name, values in expected.items():
        difference = np.abs(
            np.subtract(np.asarray(found[name]), np.asarray(values), dtype=np.float64)
        )
        assert difference.max(initial=0) <= bound, (name, difference.max())
