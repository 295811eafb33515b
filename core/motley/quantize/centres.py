"""Where a layer's centres start, and the constants that are set from them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from motley.quantize.rules import Start


def initial_centres(weights: torch.Tensor, count: int, start: Start = "range") -> torch.Tensor:
    """Return sorted centres [K, count] for the weights [K, d] of a layer.

    `range` is what QuPeD's authors released: for two centres the means of the negative and of
    the other weights, for more an even spacing from the smallest to the largest weight. Outliers
    leave its outer cells nearly empty; `quantiles` gives every cell about as many members. One
    centre is the median in all. `unit` spaces them evenly from -1 to 1 (ProxQuant, and QuPeD's
    Table 1), `magnitude` from -s to s with s the mean of |weights|.
    """
    if start in ("unit", "magnitude") and count > 1:
        places = torch.linspace(-1, 1, count, dtype=weights.dtype, device=weights.device)
        ends = weights.abs().mean(1, keepdim=True)
        return places * (torch.ones_like(ends) if start == "unit" else ends)
    if start == "quantiles" or count == 1:
        places = (torch.arange(count, dtype=weights.dtype, device=weights.device) + 0.5) / count
        return torch.stack([_quantiles(row, places) for row in weights])
    if count == 2:
        return torch.stack(
            (_mean_where(weights, weights < 0), _mean_where(weights, weights >= 0)), 1
        )
    low, high = weights.amin(1, keepdim=True), weights.amax(1, keepdim=True)
    places = torch.linspace(0, 1, count, dtype=weights.dtype, device=weights.device)
    return torch.lerp(low, high, places.unsqueeze(0))


def sharpness(centres: torch.Tensor, steepness: float) -> torch.Tensor:
    """Return the soft quantizer's constant P of a layer from its *initial* centres, [K, 1].

    P = steepness / the smallest gap, since P counts in units of the gaps: weights of a CNN lie
    about 0.03 apart, where P = 10 would be a nearly constant map. Equal centres have no gap and
    are left out; a layer without any gap gets P = steepness.
    """
    gaps = centres.diff(dim=1)
    smallest = torch.where(gaps > 0, gaps, torch.inf)
    smallest = torch.cat((smallest, torch.full_like(centres[:, :1], torch.inf)), 1).amin(1, True)
    return steepness / torch.where(smallest.isinf(), torch.ones_like(smallest), smallest)


def longest_step(weights: torch.Tensor, centres: torch.Tensor, share: float) -> torch.Tensor:
    """Return the bound of `penalty.linear_pull` for a layer, [K, 1].

    A share of the distance between the outer initial centres; of the weights' range where all
    centres are one.
    """
    reach = centres[:, -1:] - centres[:, :1]
    spread = weights.amax(1, keepdim=True) - weights.amin(1, keepdim=True)
    return share * torch.where(reach > 0, reach, spread)


def unused(codes: npt.NDArray[np.uint8], count: int) -> int:
    """Return how many of `count` centres no code (any shape) names."""
    return int(np.count_nonzero(np.bincount(codes.reshape(-1), minlength=count) == 0))


def _mean_where(weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the mean of the chosen weights of each row, [K]; 0 where none is."""
    sums = torch.where(chosen, weights, torch.zeros_like(weights)).sum(1)
    return sums / chosen.sum(1).clamp_min(1)


def _quantiles(row: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return quantiles of a row of any length; `torch.quantile` stops at 2^24 elements."""
    ordered = row.sort().values
    return ordered[(places * row.numel()).long().clamp_max(row.numel() - 1)]
