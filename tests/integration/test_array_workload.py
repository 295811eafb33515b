"""A workload of arrays: real processes train it, and none of them imports torch."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from federation import Federation

from fedserver.client import Operator
from motley.errors import WorkloadError
from motley.models.units import fresh_tensors, variant_table
from motley.seeding import derive
from motley.wire import PayloadReader
from motley.workload import ArrayModel, Variant

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

RUN = """
[run]
name = "arrays"
algorithm = "fedavg"
rounds = 2
seed = 5
[workload]
name = "identity"
arguments = { megabytes = 8.0 }
[clients]
expected = 2
[settings]
local_steps = 1
[wire]
up_bits = BITS
down_bits = BITS
[evaluate]
every = 1
"""


class Plain(Federation):
    """Processes that were not forked from one with torch, and find the benchmark's workload."""

    def _start(self, name: str, arguments: list[str], **extra: str) -> None:
        path = os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])
        super()._start(name, arguments, PYTHONPATH=path, OMP_NUM_THREADS="1", **extra)


def maps_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


WORKLOAD = ("--workload", "identity=wire_workload:Identity")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plain]:
    """A server and two clients that take one run after the other."""
    found = Plain(tmp_path_factory.mktemp("arrays"), forked=False)
    try:
        found.serve(*WORKLOAD)
        for name in ("a", "b"):
            found.client(name, "any", *WORKLOAD)
        yield found
    finally:
        found.close()


@pytest.mark.processes
@pytest.mark.parametrize("bits", [32, 4])
def test_daemon_and_training_process_import_no_torch(
    tmp_path: Path, bits: int, world: Plain, identity: ModuleType
) -> None:
    run = world.submit(RUN.replace("BITS", str(bits)))
    world.finished(run)
    for name in ("a", "b"):
        (started,) = world.events(name, "worker_started")
        assert not maps_torch(started["pid"])
        assert not maps_torch(world.processes[name].pid)
    assert not maps_torch(world.processes["server"].pid)
    with Operator(world.data) as operator:
        operator.fetch(run, 2, tmp_path / "model.payload")
    if bits == 32:
        check_values(tmp_path / "model.payload", identity)


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("wire_workload")


def check_values(path: Path, identity: ModuleType) -> None:
    """Compare a model with the initial one, touched once a round."""
    variant = identity.Identity(8.0).variants()["arrays"]
    before = fresh_tensors(variant, derive(5, "init", "arrays"))
    with PayloadReader(path, variant_table(variant).tensor_table) as reader:
        for name, values in before.items():
            expected = values.copy()
            for _ in range(2):
                expected[:: 2**18] += identity.TOUCH
            np.testing.assert_array_equal(reader[name].decode(), expected)


def test_a_variant_that_draws_other_shapes_is_refused() -> None:
    arrays = ArrayModel({"a.weight": (2, 3)}, lambda rng: {"a.weight": np.zeros(6, np.float32)})
    with pytest.raises(WorkloadError, match=r"float32 \[6\] was drawn .* \[2, 3\]"):
        fresh_tensors(Variant(arrays=arrays), 0)
    with pytest.raises(WorkloadError, match="no torch module"):
        Variant(arrays=arrays).build()


def test_the_table_of_arrays_follows_the_variant() -> None:
    shapes = {"a.weight": (2, 3), "a.bias": (2,), "b.weight": (4,)}
    variant = Variant(arrays=ArrayModel(shapes, lambda rng: {}), quantized=("b.weight",))
    table = variant_table(variant)
    assert [(r.name, r.shape, r.unit, r.quantized) for r in table] == [
        ("a.weight", (2, 3), "a", False),
        ("a.bias", (2,), "a", False),
        ("b.weight", (4,), "b", True),
    ]
