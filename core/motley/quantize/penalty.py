"""The penalty that pulls weights and centres together, and its proximal steps.

R(x, c) = ½ Σ_i min_k |x_i - c_k|, with the ½ of QuPeD's definition (arXiv 2107.13892, section
2.1); the released code leaves it out, so its λ is half of the λ here.

| paper | here |
|---|---|
| prox_{η₁λR(·,c)} | `prox_weights`, threshold η₁λ/2 |
| prox_{η₂λR(x,·)} | `exact_centres`, or one step of it: `linear_pull`; threshold η₂λ/2 |
"""

from __future__ import annotations

import torch
from torch.nn import functional

from motley.quantize.cells import Cells, nearest_cells
from motley.quantize.quantizer import hard_quantize


def penalty(weights: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return R of each client's layer, [K]: half the l1 distance to the nearest centres."""
    return 0.5 * (weights - hard_quantize(weights, centres)).abs().sum(1)


def shrink(
    residual: torch.Tensor, threshold: float, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return sign(r) max(|r| - threshold, 0); exactly 0 within the threshold.

    `out`: where to write it, which may be `residual` itself.
    """
    if out is None:
        return functional.softshrink(residual, threshold)
    torch.ops.aten.softshrink.out(residual, threshold, out=out)
    return out


def prox_weights(weights: torch.Tensor, centres: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return the minimiser z [K, d] of ½|z - weights|² + threshold Σ_i min_k |z_i - c_k|.

    For one fixed centre the minimum is soft-thresholding towards it, and its value grows with the
    distance, so the best centre is the nearest: q + shrink(weights - q). A weight within the
    threshold of its centre lands on it, with the very bits.
    """
    nearest = hard_quantize(weights, centres)
    return nearest + shrink(weights - nearest, threshold)


def excess(weights: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return each centre's members above it less those below, [K, m].

    A member that lies on its centre counts for neither side.
    """
    cells = nearest_cells(weights, centres)
    return cells.sums((weights - cells.values(centres)).sign())


def linear_pull(excess: torch.Tensor, threshold: float, bound: torch.Tensor) -> torch.Tensor:
    """Return how far one step of the penalty moves each centre, [K, m]: towards the median.

    The penalty's derivative in a centre is -(members above - members below) / 2, so the step is
    *plus* η₂λ/2 times the excess; the released code has it the other way round and drives
    centres away from their members. One step may overshoot, so it is cut at ± `bound`.

    Args:
        excess: members above less members below, [K, m].
        threshold: η₂λ/2.
        bound: longest step, at least 0, [K, 1] or [K, m].
    """
    return torch.minimum(torch.maximum(excess * threshold, -bound), bound)


def exact_centres(
    moved: torch.Tensor, weights: torch.Tensor, cells: Cells, threshold: float
) -> torch.Tensor:
    """Return the exact proximal step of the centres for fixed cells, [K, m].

    Each centre separates: min_c ½ (c - μ)² + threshold Σ_{i in S} |x_i - c|. With n members the
    solution is the median of the 2n + 1 numbers {x_i} and {μ + threshold (n - 2j), j = 0..n} (Li
    and Osher). It moves μ towards the median of its members and never past it. Once members lie on
    a centre it holds the centre where it is; `linear_pull` does not.

    Args:
        moved: the centres after their gradient step, μ, [K, m].
        weights: [K, d].
        cells: of these weights at the centres *before* that step.
        threshold: η₂λ/2.
    """
    codes = cells.codes()
    result = moved.clone()
    for client in range(moved.shape[0]):
        for k in range(moved.shape[1]):
            members = weights[client][codes[client] == k]
            count = members.numel()
            steps = count - 2 * torch.arange(count + 1, dtype=moved.dtype, device=moved.device)
            candidates = torch.cat((members, moved[client, k] + threshold * steps))
            result[client, k] = candidates.median()
    return result
