"""Folding against brute force over whole arrays."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fedserver.aggregation.fold import Contribution, fold
from fedserver.aggregation.reducers import Reducer, median, reduce_present, weighted_mean
from fedserver.errors import AggregationError
from motley.algorithms.pfedme import PFedMe
from motley.models.units import TensorInfo, UnitTable
from motley.wire import (
    BitMask,
    PayloadReader,
    encode_dense,
    encode_masked,
    quantize_uniform,
    write_payload,
)

TABLE = UnitTable(
    (
        TensorInfo("a.weight", (300, 500), "float32", "a", True),  # more than two tiles
        TensorInfo("a.bias", (7,), "float32", "a", False),
        TensorInfo("b.weight", (3, 5), "float64", "b", True),
        TensorInfo("b.count", (), "int64", "b", False, parameter=False),
    )
)
Tensors = dict[str, npt.NDArray[np.generic]]


def draw(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        row.name: np.asarray(rng.integers(0, 100), np.int64)
        if row.dtype == "int64"
        else rng.normal(size=row.shape).astype(row.dtype)
        for row in TABLE.rows
    }


def write(path: Path, tensors: Tensors) -> Path:
    write_payload(path, [(n, encode_dense(t)) for n, t in tensors.items()], TABLE.tensor_table)
    return path


def run_fold(
    folder: Path,
    state: Tensors,
    contributions: list[Contribution],
    reducer: Reducer = weighted_mean,
) -> Tensors:
    out = folder / "out"
    fold(
        table=TABLE,
        state=write(folder / "state", state),
        contributions=contributions,
        reducer=reducer,
        finish_tile=lambda old, reduced: reduced,
        out=out,
    )
    with PayloadReader(out, TABLE.tensor_table) as reader:
        return {name: reader[name].decode() for name in reader.names}


def test_weighted_mean_by_hand() -> None:
    values = np.array([[1.0, 2.0], [4.0, 8.0]], np.float32)
    result = weighted_mean(values, np.array([1.0, 3.0]))
    np.testing.assert_allclose(result, np.array([3.25, 6.5], np.float32), rtol=1e-6)
    assert result.dtype == np.float32


def test_equal_weights_are_the_plain_mean_to_the_last_bit() -> None:
    values = np.random.default_rng(0).normal(size=(7, 1000)).astype(np.float32)
    total = values[0].copy()
    for row in values[1:]:
        total += row
    for weight in (1.0, 40.0, 0.3):
        result = weighted_mean(values, np.full(7, weight))
        np.testing.assert_array_equal(result, total / np.float32(7))


def test_a_mean_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    huge = draw(0)
    huge["a.bias"][:] = 3e38
    contributions = [
        Contribution(f"c{i}", write(tmp_path / f"c{i}", huge), False, 1.0) for i in range(2)
    ]
    with pytest.raises(AggregationError, match=r"a\.bias is not finite.*c0, c1"):
        run_fold(tmp_path, draw(99), contributions)
    assert not (tmp_path / "out").exists()


def test_mean_equals_brute_force_and_counters_are_rounded(tmp_path: Path) -> None:
    clients = {f"c{index}": draw(index) for index in range(3)}
    weights = {"c0": 3.0, "c1": 5.0, "c2": 11.0}
    contributions = [
        Contribution(name, write(tmp_path / name, tensors), False, weights[name])
        for name, tensors in clients.items()
    ]
    result = run_fold(tmp_path, draw(99), contributions)
    for row in TABLE.rows:
        exact = sum(weights[n] * t[row.name].astype(np.float64) for n, t in clients.items()) / 19
        if row.dtype == "int64":
            assert result[row.name] == np.rint(exact)
        else:
            np.testing.assert_allclose(result[row.name], exact, rtol=1e-5, atol=1e-6)


def test_order_of_contributions_does_not_matter(tmp_path: Path) -> None:
    contributions = [
        Contribution(f"c{i}", write(tmp_path / f"c{i}", draw(i)), False, 1.0 + i) for i in range(4)
    ]
    forward = run_fold(tmp_path, draw(99), contributions)
    backward = run_fold(tmp_path, draw(99), contributions[::-1])
    for name in forward:
        np.testing.assert_array_equal(forward[name], backward[name])


def test_units_that_nobody_sent_stay_and_weights_may_differ_by_unit(tmp_path: Path) -> None:
    state, first, second = draw(99), draw(0), draw(1)
    only_a = {name: first[name] for name in ("a.weight", "a.bias")}
    contributions = [
        Contribution("c0", write(tmp_path / "c0", only_a), False, 1.0),
        Contribution("c1", write(tmp_path / "c1", second), False, {"a": 3.0}),
    ]
    result = run_fold(tmp_path, state, contributions)
    np.testing.assert_array_equal(result["b.weight"], state["b.weight"])
    np.testing.assert_array_equal(result["b.count"], state["b.count"])
    expected = (first["a.bias"] + np.float32(3) * second["a.bias"]) / np.float32(4)
    np.testing.assert_allclose(result["a.bias"], expected, rtol=1e-5, atol=1e-7)


def test_values_and_quantized_deltas_mix(tmp_path: Path) -> None:
    state, values = draw(99), draw(0)
    delta = {n: v for n, v in draw(1).items() if v.dtype == np.float32}
    encoded = [(n, quantize_uniform(v, 8, None)) for n, v in delta.items()]
    write_payload(tmp_path / "c1", encoded, TABLE.tensor_table)
    contributions = [
        Contribution("c0", write(tmp_path / "c0", values), False, 1.0),
        Contribution("c1", tmp_path / "c1", True, 1.0),
    ]
    result = run_fold(tmp_path, state, contributions)
    for name, change in delta.items():
        step = (change.max() - change.min()) / 255
        expected = (values[name] + state[name] + change) / 2
        np.testing.assert_allclose(result[name], expected, atol=0.26 * step + 1e-5)
    np.testing.assert_array_equal(result["b.weight"], values["b.weight"])


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (3.0, 0.7, 1.9)])
def test_a_mean_of_one_after_the_other_is_the_mean_of_all_at_once(
    tmp_path: Path, weights: tuple[float, ...]
) -> None:
    contributions = [Contribution("c0", write(tmp_path / "c0", draw(0)), False, weights[0])]
    for i, weight in enumerate(weights[1:], 1):
        encoded = [(n, quantize_uniform(v, i, None)) for n, v in draw(i).items() if n[0] == "a"]
        write_payload(tmp_path / f"c{i}", encoded, TABLE.tensor_table)
        contributions.append(Contribution(f"c{i}", tmp_path / f"c{i}", True, weight))
    streamed = run_fold(tmp_path, draw(99), contributions)
    at_once = run_fold(tmp_path, draw(99), contributions, lambda v, w: weighted_mean(v, w))
    for name, values in at_once.items():
        np.testing.assert_array_equal(streamed[name], values)


def test_a_servers_step_beyond_the_mean_is_for_parameters_alone(tmp_path: Path) -> None:
    """A variance that fell from 1,000 to 0.001 would be one of -2,999 with pFedMe's beta of 4."""
    table = UnitTable(
        (
            TensorInfo("w", (2,), "float32", "norm", False),
            TensorInfo("v", (2,), "float32", "norm", False, parameter=False),
        )
    )

    def filled(name: str, value: float) -> Path:
        values = np.full(2, value, np.float32)
        encoded = [(row.name, encode_dense(values)) for row in table]
        write_payload(tmp_path / name, encoded, table.tensor_table)
        return tmp_path / name

    fold(
        table=table,
        state=filled("state", 1000.0),
        contributions=[Contribution("c0", filled("c0", 1e-3), False, 1.0)],
        reducer=weighted_mean,
        finish_tile=PFedMe.configure({"server_rate": 4.0}).finish_tile,
        out=tmp_path / "out",
    )
    with PayloadReader(tmp_path / "out", table.tensor_table) as reader:
        np.testing.assert_allclose(reader["w"].decode(), -2999.996, rtol=1e-6)
        np.testing.assert_array_equal(reader["v"].decode(), np.float32(1e-3))


def test_memory_does_not_grow_with_clients(tmp_path: Path) -> None:
    size = 4_000_000
    table = UnitTable((TensorInfo("w", (size,), "float32", "w", True),))
    value = np.ones(size, np.float32)
    write_payload(tmp_path / "u", [("w", encode_dense(value))], table.tensor_table)

    def peak(clients: int) -> int:
        contributions = [Contribution(f"c{i}", tmp_path / "u", False, 1.0) for i in range(clients)]
        tracemalloc.start()
        fold(
            table=table,
            state=tmp_path / "u",
            contributions=contributions,
            reducer=weighted_mean,
            finish_tile=lambda old, reduced: reduced,
            out=tmp_path / "out",
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    model, tile = 4 * size, 4 * 65_536
    few, many = peak(2), peak(16)
    assert many - few < 2 * tile
    assert many < 2 * model + 6 * tile


# --- sparse updates ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [weighted_mean, median])
def test_a_sparse_tile_takes_little_more_than_the_values(rule: Reducer) -> None:
    clients, size = 64, 65_536
    values = np.ones((clients, size), np.float32)
    present = np.ones((clients, size), np.bool_)
    present[::2, ::3] = False
    old = np.zeros(size, np.float32)
    tracemalloc.start()
    result = reduce_present(rule, values, np.ones(clients), present, old)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (result == 1).all()
    assert peak < values.nbytes


def sparse(path: Path, tensors: Tensors, bits: npt.NDArray[np.bool_]) -> Contribution:
    """Write an update that holds the masked values of `a.weight` and all of `a.bias`."""
    mask = BitMask.of(bits)
    kept = encode_dense(mask.take(tensors["a.weight"]))
    weight = encode_masked(kept, mask, (300, 500), known=True)
    encoded = [("a.weight", weight), ("a.bias", encode_dense(tensors["a.bias"]))]
    write_payload(path, encoded, TABLE.tensor_table)
    masks = {"a.weight": mask}
    return Contribution(path.name, path, False, 1.0, masks=lambda row: masks.get(row.name))


def masks_of(kind: str) -> list[npt.NDArray[np.bool_]]:
    place = np.arange(300 * 500).reshape(300, 500)
    if kind == "disjoint":
        return [place % 4 == number for number in range(3)]
    return [np.random.default_rng(number).random((300, 500)) < 0.4 for number in range(3)]


@pytest.mark.parametrize("kind", ["disjoint", "overlapping"])
@pytest.mark.parametrize("rule", [weighted_mean, median])
def test_each_coordinate_is_reduced_over_its_senders(
    tmp_path: Path, kind: str, rule: Reducer
) -> None:
    state, clients, bits = draw(99), [draw(number) for number in range(3)], masks_of(kind)
    weights = [1.0, 2.0, 5.0]
    contributions = [
        replace(sparse(tmp_path / f"c{i}", clients[i], bits[i]), coefficient=weights[i])
        for i in range(3)
    ]
    result = run_fold(tmp_path, state, contributions, rule)
    values = np.stack([client["a.weight"].astype(np.float64) for client in clients])
    sent = np.stack(bits)
    nobody = ~sent.any(axis=0)
    if rule is median:
        expected = np.nanmedian(np.where(sent | nobody, values, np.nan), axis=0)
    else:
        expected = np.ma.average(np.ma.array(values, mask=~sent), axis=0, weights=weights).data
    expected = np.where(nobody, state["a.weight"], expected)
    np.testing.assert_allclose(result["a.weight"], expected, rtol=1e-5, atol=1e-6)
    assert nobody.sum() > 1000
    np.testing.assert_array_equal(result["a.weight"][nobody], state["a.weight"][nobody])
    np.testing.assert_array_equal(result["b.weight"], state["b.weight"])


def test_whole_and_sparse_updates_mix(tmp_path: Path) -> None:
    state, whole, partly, bits = draw(99), draw(0), draw(1), masks_of("overlapping")[0]
    contributions = [
        Contribution("c0", write(tmp_path / "c0", whole), False, 1.0),
        sparse(tmp_path / "c1", partly, bits),
    ]
    result = run_fold(tmp_path, state, contributions)
    mean = (whole["a.weight"] + partly["a.weight"]) / np.float32(2)
    np.testing.assert_array_equal(result["a.weight"], np.where(bits, mean, whole["a.weight"]))


def test_full_masks_are_the_plain_mean_to_the_last_bit(tmp_path: Path) -> None:
    state, clients = draw(99), [draw(number) for number in range(5)]
    every = np.ones((300, 500), np.bool_)
    dense = [
        Contribution(f"d{i}", write(tmp_path / f"d{i}", clients[i]), False, 1.0) for i in range(5)
    ]
    masked = [sparse(tmp_path / f"c{i}", clients[i], every) for i in range(5)]
    plain = run_fold(tmp_path, state, dense)
    np.testing.assert_array_equal(run_fold(tmp_path, state, masked)["a.weight"], plain["a.weight"])
