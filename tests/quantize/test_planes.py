from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from motley.quantize.activations import quantize_activations
from motley.quantize.planes import (
    clip_to_bits,
    lasso_gradient,
    magnitude_counts,
    pruned_bits,
)


def random_codes(bits: int, size: int = 200, seed: int = 0) -> torch.Tensor:
    top = 2**bits - 1
    rng = np.random.default_rng(seed)
    values = np.clip(np.rint(rng.normal(size=size) * top / 3), -top, top)
    return torch.from_numpy(values.astype(np.int16))


def planes_of(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the bit planes of magnitudes, float64 [bits, N]: slow and plain."""
    rows = [[(abs(int(q)) >> j) & 1 for q in codes] for j in range(bits)]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_the_lasso_keeps_the_weight_that_the_objective_gives_it(bits: int) -> None:
    """A step on planes, by autograd, moves loss and lasso in a ratio that the pull keeps."""
    codes, step, weight = random_codes(bits), 0.013, 0.3
    signs = codes.sign().double()
    target = torch.from_numpy(np.random.default_rng(1).normal(size=len(codes)))
    places = torch.pow(2.0, torch.arange(bits)).double()

    def moves(objective: str) -> torch.Tensor:
        """Return how far one plane-space step of size 1 moves the magnitudes, in LSB units."""
        planes = planes_of(codes, bits).requires_grad_()
        if objective == "loss":
            value = (step * signs * (places @ planes) * target).sum()
        else:
            value = weight * (planes.square().sum(1) + 1e-8).sqrt().sum()
        value.backward()
        assert planes.grad is not None
        return places @ planes.grad

    pull = lasso_gradient(codes, bits, step, weight).double() * signs
    in_weights = pull / step  # LSB units of a weight-space step of size 1
    # The loss moves a weight by target in weight space, target / step LSB; in plane space by
    # `moves`. The lasso has to be sped up by the same factor.
    held = codes != 0
    factor = (target / step)[held] / (moves("loss") * signs)[held]
    assert torch.allclose(factor, factor[0].expand_as(factor))
    expected = moves("lasso") * factor[0]
    assert torch.allclose(in_weights, expected, rtol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_step_on_planes_by_finite_differences_is_gradient_and_pull(bits: int) -> None:
    """Loss and lasso together, in numpy: no formula of the product's, no autograd."""
    top, reach, weight = 2**bits - 1, 0.7, 0.4
    rng = np.random.default_rng(bits)
    codes = rng.integers(1, top + 1, 12) * rng.choice([-1, 1], 12)
    places = 2.0 ** np.arange(bits)
    planes = (np.abs(codes)[None] >> np.arange(bits)[:, None] & 1).astype(np.float64)
    target = rng.normal(size=12)

    def weights(b: np.ndarray) -> np.ndarray:
        return reach / top * np.sign(codes) * (places @ b)

    def objective(b: np.ndarray) -> float:
        norms = np.sqrt(1e-8 + np.square(b).sum(1))
        return float(np.square(weights(b) - target).sum() / 2 + weight * norms.sum())

    slope, width = np.empty_like(planes), 1e-6
    for place in np.ndindex(*planes.shape):
        moved = np.zeros_like(planes)
        moved[place] = width
        slope[place] = (objective(planes + moved) - objective(planes - moved)) / (2 * width)
    # A weight's own step of size 1 moves it by its gradient; planes are slower by this factor.
    speed = 3 * top / (reach**2 * (2**bits + 1))
    found = weights(planes) - weights(planes - speed * slope)
    pull = lasso_gradient(torch.from_numpy(codes), bits, reach / top, weight)
    expected = weights(planes) - target + pull.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def prune_plane_by_plane(codes: torch.Tensor, bits: int, threshold: float) -> tuple[list[int], int]:
    """Return pruned magnitudes and width: each plane looked at after the last was clipped."""
    magnitudes = [abs(int(q)) for q in codes]
    while bits > 1:
        ones = sum((m >> (bits - 1)) & 1 for m in magnitudes)
        if ones > 0 and ones >= threshold * len(magnitudes):
            break
        bits -= 1
        magnitudes = [min(m, 2**bits - 1) for m in magnitudes]
    return magnitudes, bits


@given(st.integers(1, 8), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.03, 0.2, 0.9]))
def test_pruning_is_clip_and_nothing_else(bits: int, seed: int, threshold: float) -> None:
    codes = random_codes(bits, 60, seed)
    magnitudes, expected = prune_plane_by_plane(codes, bits, threshold)
    left = pruned_bits(magnitude_counts(codes, bits), bits, threshold)
    clipped = clip_to_bits(codes, left)
    assert left == expected
    assert clipped.abs().tolist() == magnitudes
    inside = codes.abs() <= 2**left - 1
    assert torch.equal(clipped[inside], codes[inside])
    assert torch.equal(clipped.sign(), codes.sign())


def test_a_threshold_of_0_drops_empty_planes_alone() -> None:
    codes = torch.tensor([1, -2, 3, 0], dtype=torch.int16)
    assert pruned_bits(magnitude_counts(codes, 6), 6, 0.0) == 2
    assert pruned_bits(magnitude_counts(torch.zeros(5, dtype=torch.int16), 4), 4, 0.0) == 1


def test_activations_by_hand() -> None:
    x = torch.tensor([-1.0, 0.2, 2.9, 9.0], requires_grad=True)
    y = quantize_activations(x, 2)  # levels 0, 2, 4, 6
    assert y.tolist() == [0.0, 0.0, 2.0, 6.0]
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 0.0]
    assert quantize_activations(torch.full((3,), -1.0), 4).tolist() == [0.0, 0.0, 0.0]
