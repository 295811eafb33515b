"""BatchNorm's statistics travel as values, whatever the widths on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from bench import runfile
from torch import nn

from fedserver.rounds.tasks import Ticket
from fedserver.rounds.updates import check_update
from fedserver.simulate.population import population_of
from fedserver.simulate.simulation import simulate
from motley.algorithms.base import Broadcast, Tensors
from motley.errors import UpdateError
from motley.execution.encoding import encode_update
from motley.models.units import fresh_tensors, variant_table
from motley.plan import Plan
from motley.runfile import parse
from motley.task import TaskKind, TaskSpec
from motley.wire import Dense, PayloadReader, UniformOffset, quantize_uniform, write_payload
from motley.workload import DataSpec, LocalData, Split, Variant, Workload

FEATURES = 6
STATISTICS = ("0.running_mean", "0.running_var")
VARIANT = Variant(
    lambda: nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, 4), nn.Linear(4, 2))
)
TABLE = variant_table(VARIANT)


class Scales(Workload):
    """Features of deviations from 1e-3 to 100, so that a step of the variances is far too wide."""

    def variants(self) -> Mapping[str, Variant]:
        return {"net": VARIANT}

    def load(self, spec: DataSpec) -> LocalData:
        rng = np.random.default_rng(int(spec.options["client"]))
        plain = rng.normal(size=(60, FEATURES))
        inputs = (plain * np.logspace(-3, 2, FEATURES)).astype(np.float32)
        targets = (plain[:, 0] > 0).astype(np.int64)
        return LocalData(Split(inputs[:40], targets[:40]), Split(inputs[40:], targets[40:]))


def after_two_rounds(folder: Path, algorithm: str, wire: str = "") -> Tensors:
    text = runfile(rounds=2, sections=f'weighting = "uniform"\n[wire]\n{wire}\n')
    text = text.replace('"fedavg"', f'"{algorithm}"').replace('"digits"', '"scales"')
    result = simulate(
        text,
        population=population_of(parse(text), clients=2, data="x?clients=2&client={client}"),
        directory=folder,
        mappings={"scales": "test_quantized_buffers:Scales"},
    )
    assert result.status == "finished", result.reason
    digest = result.record["state"]
    with PayloadReader(folder / "payloads" / digest[:2] / digest, TABLE.tensor_table) as reader:
        return {name: reader[name].decode() for name in reader.names}


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    return after_two_rounds(tmp_path_factory.mktemp("exact"), "fedavg")


@pytest.mark.parametrize(
    ("algorithm", "wire"),
    [("fedpaq", "up_bits = 4"), ("uveqfed", "up_bits = 4"), ("fedavg", "down_bits = 4")],
)
def test_statistics_are_those_of_a_run_in_full_precision(
    tmp_path: Path, exact: Tensors, algorithm: str, wire: str
) -> None:
    """Those of the first layer follow from the data alone, so not a bit may differ."""
    found = after_two_rounds(tmp_path, algorithm, wire)
    for name in STATISTICS:
        np.testing.assert_array_equal(found[name], exact[name])
    assert found["0.running_var"].min() > 0
    assert (found["1.weight"] != exact["1.weight"]).any()


@pytest.mark.parametrize(("up_bits", "down_bits"), [(4, 32), (32, 4)])
def test_both_sides_agree_on_values(tmp_path: Path, up_bits: int, down_bits: int) -> None:
    """What a client encodes is what the server takes; quantized statistics are refused."""
    plan = Plan(variant="net", up_bits=up_bits, down_bits=down_bits)
    before, after = (fresh_tensors(VARIANT, seed) for seed in (1, 2))
    task = TaskSpec(
        task_id="t",
        kind=TaskKind.TRAIN,
        run_id="r",
        run_name="r",
        round=1,
        rounds=1,
        algorithm="fedavg",
        workload="scales",
        plan=plan,
        run_seed=0,
        client="c",
    )
    sent = dict(encode_update(task, TABLE, after, Broadcast.of(before)))
    for name in STATISTICS:
        assert sent[name].encoding == Dense("float32")
        np.testing.assert_array_equal(sent[name].decode(), after[name])
    coarse = UniformOffset(4) if up_bits == 4 else Dense("float32")
    assert sent["1.weight"].encoding == coarse
    ticket = Ticket(
        task_id="t", client="c", plan=plan, table=TABLE, state=tmp_path / "state", max_norm=None
    )
    path = tmp_path / "update"
    write_payload(path, list(sent.items()), TABLE.tensor_table)
    check_update(path, ticket)
    sent["0.running_var"] = quantize_uniform(after["0.running_var"], 4, None)
    write_payload(path, list(sent.items()), TABLE.tensor_table)
    with pytest.raises(UpdateError, match=r"0\.running_var .*the plan asks for float32 values"):
        check_update(path, ticket)
