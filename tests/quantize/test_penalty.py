"""The penalty and its proximal steps against grids, by hand, and towards the median."""

from __future__ import annotations

import numpy as np
import numpy.testing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from motley.quantize.cells import nearest_cells
from motley.quantize.penalty import (
    exact_centres,
    excess,
    linear_pull,
    penalty,
    prox_weights,
    shrink,
)
from motley.quantize.quantizer import hard_quantize

DOUBLE = torch.float64


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=DOUBLE)


def test_penalty_by_hand() -> None:
    npt.assert_allclose(penalty(row(-2, 0.5, 4), row(-1, 1)), [0.5 * (1 + 0.5 + 3)])


def test_prox_by_hand() -> None:
    # Threshold 0.5: within it a weight lands on its centre; beyond it comes nearer by it.
    npt.assert_allclose(
        prox_weights(row(-2, -0.7, 0.4, 1.6, 1.5), row(-1, 1), 0.5), [[-1.5, -1, 0.9, 1.1, 1]]
    )


@given(st.integers(0, 10_000), st.integers(1, 4), st.floats(0.01, 2))
def test_prox_against_a_grid(seed: int, count: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    y, c = rng.normal(), np.sort(rng.normal(size=count))
    z = np.linspace(-6, 6, 120_001)
    values = 0.5 * (z - y) ** 2 + threshold * np.abs(z[:, None] - c).min(1)
    mine = float(prox_weights(row(y), row(*c), threshold))
    value = 0.5 * (mine - y) ** 2 + threshold * np.abs(mine - c).min()
    assert value <= values.min() + 1e-12


def test_weights_land_on_their_centre_with_its_very_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(2, 5000, generator=generator), torch.tensor([[-0.3, 0.7], [0.1, 0.11]])
    settled = prox_weights(x, c, 0.2)
    q = hard_quantize(x, c)
    near = (x - q).abs() < 0.2
    npt.assert_array_equal(settled[near], q[near])
    npt.assert_array_equal(hard_quantize(settled, c), q)


def test_shrink_keeps_the_sign() -> None:
    npt.assert_allclose(shrink(row(-3, -1, 0, 0.5, 2), 1.0), [[-2, 0, 0, 0, 1]])


def test_excess_counts_members_on_their_centre_for_neither_side() -> None:
    c = row(0, 10)
    npt.assert_array_equal(excess(row(-1, 0, 1, 2, 9, 10, 12, 13), c), [[1, 1]])
    npt.assert_array_equal(excess(row(0, 0, 10), c), [[0, 0]])


def test_linear_pull_goes_towards_the_median_and_is_cut() -> None:
    # Three members above the centre, one below: it moves up by threshold · 2.
    members, c = row(-1, 1, 2, 3), row(0)
    npt.assert_array_equal(excess(members, c), [[2]])
    npt.assert_allclose(linear_pull(excess(members, c), 0.1, row(1)), [[0.2]])
    npt.assert_allclose(linear_pull(excess(-members, c), 0.1, row(1)), [[-0.2]])
    npt.assert_allclose(linear_pull(excess(members, c), 0.1, row(0.05)), [[0.05]])
    assert float(penalty(members, c + 0.2)) < float(penalty(members, c))


@given(st.integers(0, 10_000), st.integers(1, 4), st.floats(0.001, 0.2))
def test_exact_step_against_a_grid(seed: int, count: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    x, c = rng.normal(size=12), np.sort(rng.normal(size=count))
    mu = c + rng.normal(size=count) * 0.3
    cells = nearest_cells(row(*x), row(*c))
    mine = exact_centres(row(*mu), row(*x), cells, threshold)[0].numpy()
    codes = cells.codes()[0].numpy()
    grid = np.linspace(-6, 6, 60_001)
    for k in range(count):
        members = x[codes == k]

        def value(z: np.ndarray, k: int = k, members: np.ndarray = members) -> np.ndarray:
            return 0.5 * (z - mu[k]) ** 2 + threshold * np.abs(z[:, None] - members).sum(1)

        assert value(mine[k : k + 1])[0] <= value(grid).min() + 1e-12
        if not members.size:
            assert mine[k] == mu[k]


def test_exact_step_never_passes_the_median() -> None:
    members = row(-1, 1, 2, 3, 5)
    cells = nearest_cells(members, row(0))
    for threshold in (0.001, 0.1, 10.0):
        assert 0 < float(exact_centres(row(0), members, cells, threshold)) <= 2


def test_exact_step_stands_still_on_its_members_where_the_linear_one_does_not() -> None:
    members, c = row(0, 0, 0, 0, 5), row(0)
    cells = nearest_cells(members, c)
    npt.assert_array_equal(exact_centres(row(0.1), members, cells, 0.1), [[0]])
    assert float(0.1 + linear_pull(excess(members, c), 0.1, row(1))) == pytest.approx(0.2)
