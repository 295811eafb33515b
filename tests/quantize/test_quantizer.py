"""The quantizers against values worked out by hand, autograd, and each other."""

from __future__ import annotations

import numpy.testing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from motley.quantize.cells import MOST_MASKED, boundaries, cells_of, nearest_cells
from motley.quantize.quantizer import (
    HardQuantizer,
    SoftQuantizer,
    hard_quantize,
    soft_gradients,
    soft_quantize,
)

CENTRES = torch.tensor([[-1.0, 0.0, 3.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([[-9.0, -0.6, -0.5, -0.4, 1.5, 1.6, 2.9]], dtype=torch.float64)


def draw(seed: int, clients: int, weights: int, centres: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(clients, weights, generator=generator, dtype=torch.float64)
    c = torch.randn(clients, centres, generator=generator, dtype=torch.float64)
    return x, c.sort(1).values


def test_hard_by_hand() -> None:
    npt.assert_array_equal(boundaries(CENTRES), [[-0.5, 1.5]])
    npt.assert_array_equal(hard_quantize(WEIGHTS, CENTRES), [[-1, -1, -1, 0, 0, 3, 3]])
    npt.assert_array_equal(nearest_cells(WEIGHTS, CENTRES).codes(), [[0, 0, 0, 1, 1, 2, 2]])


def test_hard_gradient_is_the_sum_over_members() -> None:
    x, c = WEIGHTS.clone().requires_grad_(), CENTRES.clone().requires_grad_()
    scale = torch.tensor([[1.0, 2, 4, 8, 16, 32, 64]])
    (HardQuantizer.apply(x, c) * scale).sum().backward()
    npt.assert_array_equal(c.grad, [[7, 24, 96]])
    assert x.grad is None


def test_two_centres_split_by_distance_not_by_sign() -> None:
    npt.assert_array_equal(
        hard_quantize(torch.tensor([[0.1, 0.9]]), torch.tensor([[0.0, 1.0]])), [[0, 1]]
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4, MOST_MASKED, MOST_MASKED + 1, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_centres(count: int, dtype: torch.dtype) -> None:
    x, c = (t.to(dtype) for t in draw(count, 3, 500, count))
    brute = (x.unsqueeze(2) - c.unsqueeze(1)).abs().argmin(2)
    cells = nearest_cells(x, c)
    npt.assert_array_equal(cells.codes(), brute)
    npt.assert_array_equal(cells.values(c), c.gather(1, brute))
    npt.assert_array_equal(cells_of(cells.codes(), count, dtype).values(c), cells.values(c))
    sums = torch.zeros_like(c).scatter_add_(1, brute, x)
    npt.assert_allclose(cells.sums(x), sums, atol=1e-3 if dtype == torch.float32 else 1e-12)
    out = torch.empty_like(x)
    assert cells.values(c, out) is out
    npt.assert_array_equal(out, cells.values(c))


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_exactly_the_bits_of_the_centres(seed: int, count: int) -> None:
    x, c = (t.float() for t in draw(seed, 2, 50, count))
    cells = nearest_cells(x, c)
    for row, own in zip(cells.values(c), c, strict=True):
        assert set(row.tolist()) <= set(own.tolist())
    # Frozen cells follow their centres even where those have crossed.
    crossed = c.flip(1) * 1.1
    npt.assert_array_equal(cells.values(crossed), crossed.gather(1, cells.codes().long()))


def test_equal_centres_and_empty_cells() -> None:
    c = torch.tensor([[-1.0, 2.0, 2.0, 9.0]])
    x = torch.tensor([[-3.0, 1.9, 2.1, 2.0]])
    npt.assert_array_equal(hard_quantize(x, c), [[-1, 2, 2, 2]])
    sums = nearest_cells(x, c).sums(torch.ones(1, 4))
    npt.assert_array_equal(sums.sum(1), [4])
    npt.assert_array_equal(sums[0, 3], 0)


def test_soft_by_hand() -> None:
    # One step of 2 at 0: -1 + 2 σ(P x).
    c, x = torch.tensor([[-1.0, 1.0]]), torch.tensor([[0.0, 0.5, -0.5]])
    expected = [[0.0, -1 + 2 / (1 + 2.718281828459045**-1), -1 + 2 / (1 + 2.718281828459045)]]
    npt.assert_allclose(soft_quantize(x, c, torch.tensor([[2.0]])), expected, rtol=1e-6)
    # dQ/dx = P D s (1 - s) = 2 · 2 · ¼ at 0; each centre has half of the rest's shift.
    of_weights, of_centres = soft_gradients(
        torch.tensor([[1.0, 0.0, 0.0]]), x, c, torch.tensor([[2.0]])
    )
    npt.assert_allclose(of_weights, [[1.0, 0, 0]])
    npt.assert_allclose(of_centres, [[0.0, 0.0]], atol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_soft_gradcheck(count: int) -> None:
    x, c = draw(count, 2, 9, count)
    p = torch.tensor([[3.0], [1.5]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        SoftQuantizer.apply, (x.requires_grad_(), c.requires_grad_(), p)
    )


@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(0.1, 50))
def test_moving_weights_and_centres_alike_moves_the_result_alike(
    seed: int, count: int, steepness: float
) -> None:
    x, c = draw(seed, 2, 7, count)
    p = torch.full((2, 1), steepness, dtype=torch.float64)
    for place in range(7):
        one = torch.zeros_like(x)
        one[:, place] = 1
        of_weights, of_centres = soft_gradients(one, x, c, p)
        npt.assert_allclose(of_weights[:, place] + of_centres.sum(1), [1, 1], rtol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_hard_is_the_limit_of_soft(count: int) -> None:
    x, c = draw(count, 2, 200, count)
    g = torch.randn(2, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = torch.full((2, 1), 1e7, dtype=torch.float64)
    npt.assert_allclose(soft_quantize(x, c, p), hard_quantize(x, c), atol=1e-9)
    of_weights, of_centres = soft_gradients(g, x, c, p)
    npt.assert_allclose(of_weights, torch.zeros_like(x), atol=1e-9)
    npt.assert_allclose(of_centres, nearest_cells(x, c).sums(g), atol=1e-9)


def test_each_client_is_quantized_with_its_own_centres() -> None:
    x, c = draw(3, 4, 50, 3)
    p = torch.full((4, 1), 2.0, dtype=torch.float64)
    for k in range(4):
        own = slice(k, k + 1)
        npt.assert_array_equal(hard_quantize(x, c)[own], hard_quantize(x[own], c[own]))
        npt.assert_allclose(
            soft_quantize(x, c, p)[own], soft_quantize(x[own], c[own], p[own]), rtol=1e-14
        )
