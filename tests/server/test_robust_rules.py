"""Medians and trimmed means against brute force, against liars, and in memory."""

from __future__ import annotations

import functools
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from bench import Bench, moved, runfile
from hypothesis import given
from hypothesis import strategies as st

from fedserver.aggregation.fold import Contribution, fold
from fedserver.aggregation.reducers import median, trimmed_mean
from fedserver.rounds.jobs import Form
from fedserver.rounds.replay import plan_replay
from fedserver.rounds.tasks import Receipt, Ticket
from fedserver.rounds.updates import unit_norms
from motley.errors import RunFileError, UpdateError
from motley.models.units import TensorInfo, UnitTable, fresh_tensors, variant_table
from motley.plan import Plan
from motley.runfile import parse
from motley.wire import PayloadReader, encode_dense, quantize_planes, write_payload
from motley.workloads.digits import Digits

WEIGHTS = np.ones(1)


@given(clients=st.integers(1, 12), trim=st.sampled_from([0.05, 0.1, 0.25, 0.34, 0.49]))
def test_trimmed_mean_equals_brute_force(clients: int, trim: float) -> None:
    values = np.random.default_rng(clients).normal(size=(clients, 50)).astype(np.float32)
    cut = min(math.ceil(trim * clients - 1e-9), (clients - 1) // 2)
    for column, got in zip(values.T, trimmed_mean(values, WEIGHTS, trim=trim), strict=True):
        kept = sorted(column.tolist())[cut : clients - cut]
        assert got == pytest.approx(sum(kept) / len(kept), rel=1e-5, abs=1e-6)


def test_a_share_of_a_tenth_cuts_what_it_says() -> None:
    for clients, cut in ((3, 1), (10, 1), (11, 2), (20, 2), (30, 3)):
        values = np.arange(clients, dtype=np.float64)[:, None] ** 2
        expected = values[cut : clients - cut].mean()
        assert trimmed_mean(values, WEIGHTS, trim=0.1)[0] == pytest.approx(expected)


@given(clients=st.integers(1, 12))
def test_median_equals_numpy(clients: int) -> None:
    values = np.random.default_rng(clients).normal(size=(clients, 50)).astype(np.float32)
    before = values.copy()
    np.testing.assert_allclose(median(values, WEIGHTS), np.median(values, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(values, before)


def test_a_median_of_the_largest_numbers_stays_finite() -> None:
    huge = np.full((4, 3), np.finfo(np.float32).max, np.float32)
    np.testing.assert_array_equal(median(huge, WEIGHTS), huge[0])


def test_only_clients_that_sent_a_tensor_are_in_its_reduction(tmp_path: Path) -> None:
    table = UnitTable(
        (
            TensorInfo("a", (4,), "float32", "a", True),
            TensorInfo("b", (4,), "float32", "b", True),
            TensorInfo("n", (), "int64", "b", False, parameter=False),
        )
    )

    def write(name: str, **values: float) -> Path:
        arrays = {
            row.name: np.full(row.shape, values[row.name], row.dtype)
            for row in table.rows
            if row.name in values
        }
        path = tmp_path / name
        write_payload(path, [(n, encode_dense(v)) for n, v in arrays.items()], table.tensor_table)
        return path

    sent = [
        {"a": 1.0},
        {"a": 2.0, "b": 5.0, "n": 4},
        {"a": 90.0, "b": 7.0, "n": 8},
        {"b": 99.0, "n": 9},
    ]
    fold(
        table=table,
        state=write("state", a=0.0, b=0.0, n=0),
        contributions=[
            Contribution(f"c{i}", write(f"c{i}", **values), False, 1.0)
            for i, values in enumerate(sent)
        ],
        reducer=median,
        finish_tile=lambda old, reduced: reduced,
        out=tmp_path / "out",
    )
    with PayloadReader(tmp_path / "out", table.tensor_table) as reader:
        assert [float(np.ravel(reader[n].decode())[0]) for n in "abn"] == [2.0, 7.0, 8.0]


def test_memory_is_tiles_of_all_clients_and_the_copy_that_is_sorted(tmp_path: Path) -> None:
    clients, size = 48, 2_000_000  # 8 MB
    table = UnitTable((TensorInfo("w", (size,), "float32", "w", True),))
    value = np.random.default_rng(0).normal(size=size).astype(np.float32)
    write_payload(tmp_path / "u", [("w", encode_dense(value))], table.tensor_table)
    tracemalloc.start()
    fold(
        table=table,
        state=tmp_path / "u",
        contributions=[Contribution(f"c{i}", tmp_path / "u", False, 1.0) for i in range(clients)],
        reducer=functools.partial(trimmed_mean, trim=0.1),
        finish_tile=lambda old, reduced: reduced,
        out=tmp_path / "out",
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    model, tiles = 4 * size, 4 * 65_536 * clients
    assert peak < 3.2 * model + 2 * tiles + 8 * 4 * 65_536


def spoiled_run(root: Path, rule: str) -> float:
    """Run one round in which two of eight clients lie; return how far the model went."""
    bench = Bench(root)
    names = [f"c{i}" for i in range(8)]
    bench.arrive(*names)
    sections = f'[aggregate]\nrule = "{rule}"' + ("\ntrim = 0.25" if "trim" in rule else "")
    text = runfile(rounds=1, clients=8, extra_clients="minimum = 8", sections=sections)
    run_id = bench.submit(text)
    before = bench.broadcast(bench.task("c0"))
    for index, name in enumerate(names):
        sign = 1 if index % 2 else -1
        by = sign * 1e6 if index < 1 else 2e6 if index == 1 else 0.01 * index
        bench.send(name, moved(before, by))
    bench.settle()
    with bench.engine.database.connect():
        record = bench.record(run_id)
    assert record["status"] == "finished", record["reason"]
    (replay,) = plan_replay(bench.engine, run_id)
    assert replay.run(bench.payloads)["agrees"]
    after = bench.state(run_id)
    return max(float(np.abs(after[n] - before[n]).max()) for n in before)


def test_two_liars_of_eight_spoil_a_mean_and_no_robust_rule(tmp_path: Path) -> None:
    far = {rule: spoiled_run(tmp_path / rule, rule) for rule in ("mean", "trimmed_mean", "median")}
    assert far["mean"] > 1e4
    assert far["trimmed_mean"] < 0.1
    assert far["median"] < 0.1


@pytest.mark.parametrize("bits", [32, 8])
def test_an_update_too_far_from_the_broadcast_is_refused_with_its_norm(
    tmp_path: Path, bits: int
) -> None:
    bench = Bench(tmp_path)
    bench.arrive("c0", "c1")
    sections = f"[aggregate]\nmax_update_norm = 2.0\n[wire]\nup_bits = {bits}"
    run_id = bench.submit(runfile(rounds=1, sections=sections))
    before = bench.broadcast(bench.task("c0"))
    count = sum(value.size for value in before.values())
    step = 1.9 / math.sqrt(count)
    assert bench.send("c0", moved(before, step)) is Receipt.ACCEPTED
    with pytest.raises(UpdateError, match=r"c1 has norm 3\.8.*max_update_norm allows 2") as caught:
        bench.send("c1", moved(before, 2 * step))
    assert "learning_rate" in str(caught.value)
    assert bench.record(run_id)["round"] == 0


@pytest.mark.parametrize("tail_bits", [16, 32])
@pytest.mark.parametrize("bits", [1, 4])
def test_an_update_in_planes_is_measured_against_what_the_client_was_sent(
    tmp_path: Path, bits: int, tail_bits: int
) -> None:
    """Quantization alone is no distance: of the state in full precision both would be far."""
    variant = Digits().variants()["mlp"]
    table = variant_table(variant, ends=True)
    values = fresh_tensors(variant, 0)
    write_payload(
        tmp_path / "state",
        [(name, encode_dense(value)) for name, value in values.items()],
        table.tensor_table,
    )
    plan = Plan(
        variant="mlp",
        bits=dict.fromkeys(table.quantized_units, bits),
        layout="planes",
        tail_bits=tail_bits,
    )
    form, tail = Form.of(plan), "float16" if tail_bits == 16 else None
    ticket = Ticket(
        task_id="t", client="c", plan=plan, table=table, state=tmp_path / "state", max_norm=None
    )
    for by in (0.0, 0.5):
        update = [
            (row.name, quantize_planes(values[row.name], form.planes[row.unit]))
            if row.quantized
            else (row.name, encode_dense(values[row.name] + np.float32(by), tail))
            for row in table
        ]
        write_payload(tmp_path / "update", update, table.tensor_table)
        with PayloadReader(tmp_path / "update", table.tensor_table) as reader:
            norm = math.hypot(*unit_norms(reader, ticket).values())
        count = sum(row.size for row in table if not row.quantized)
        assert norm == pytest.approx(by * math.sqrt(count), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ('[aggregate]\nrule = "median"', r"clients\.minimum: 1, and median"),
        ('[aggregate]\nrule = "best"', r"aggregate\.rule: .*'mean', 'trimmed_mean' or 'median'"),
        ("[aggregate]\ntrim = 0.2", "trim belongs to"),
        ('[aggregate]\nrule = "trimmed_mean"\ntrim = 0.5', r"aggregate\.trim: .*less than 0\.5"),
        ("[aggregate]\nmax_update_norm = 0", r"aggregate\.max_update_norm: .*greater than 0"),
    ],
)
def test_rules_that_cannot_be_are_refused_at_submission(changes: str, message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        parse(runfile(sections=changes))


def test_a_method_without_updates_takes_no_rule() -> None:
    text = runfile(sections='[aggregate]\nrule = "median"').replace("fedavg", "local")
    with pytest.raises(RunFileError, match="local sends no updates"):
        parse(text)
