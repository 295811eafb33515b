"""Integers in sign and magnitude, seen as bit planes: the group lasso and the pruning of planes.

FedMPQ (Chen and Vikalo, CVPR 2024, arXiv 2311.18129), built on BSQ. A layer's weights are
W = step · q with integers |q| <= M = 2^b - 1; plane j holds bit j of |q|, so |q| = Σ_j 2^j B_j.
Everything here follows from the histogram of magnitudes: a plane's norm and density are sums over
the 2^b values that a magnitude can have, not over the weights.
"""

from __future__ import annotations

from functools import lru_cache

import torch

TINY = 1e-8
"""Under the root of a plane's norm, as in BSQ: the norm of an empty plane has a gradient."""


def magnitude_counts(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return how many of the integers `codes` (any shape) have each magnitude, int64 [2^bits]."""
    return torch.bincount(codes.reshape(-1).abs().to(torch.int64), minlength=1 << bits)


def lasso_gradient(codes: torch.Tensor, bits: int, step: float, weight: float) -> torch.Tensor:
    """Return the gradient of `weight` · Σ_j ||B_j|| in each weight, float32 in the codes' shape.

    Planes move in a space of their own: a gradient step of size η on every B_j moves a weight by
    η · Σ_j 2^j B_j / ||B_j|| units of `step`. To keep the objective's weight against a loss that
    moves in weight space, that is multiplied by 3 M / (S² (2^b + 1)), S = M · step being the
    layer's range: the factor between the two spaces' speeds for the loss. In units of the weight
    the pull then is

        weight · 3 / (S (2^b + 1)) · Σ_j 2^j B_j / ||B_j||,   ||B_j|| = sqrt(1e-8 + ones in plane j)

    towards zero: it enters the gradient with the sign of the weight, and with it the momentum.
    """
    # Codes modulo a power of two are places in a table; those of int8 are so as they lie.
    flat, narrow = codes.reshape(-1), codes.dtype == torch.int8
    places = flat.view(torch.uint8) if narrow else flat.to(torch.int32) & 511
    tiny, ones, signed = _signed_tables(bits, 256 if narrow else 512, codes.device)
    counts = torch.bincount(places, minlength=ones.shape[1]).to(torch.float32)
    scale = step * (2**bits - 1)
    factor = weight * 3.0 / (scale * (2**bits + 1)) if scale > 0 else 0.0
    pull = torch.addmv(tiny, ones, counts).rsqrt_().mul_(factor) @ signed
    return pull.index_select(0, places.to(torch.int32)).view(codes.shape)


def pruned_bits(counts: torch.Tensor, bits: int, threshold: float) -> int:
    """Return the width that is left when planes with too few ones go, from the top down.

    A plane goes when its share of ones is 0 or below `threshold`; weights that had it are
    clipped to the new largest magnitude and counted there before the next plane is looked at.
    At least one plane stays.
    """
    left = counts.tolist()
    total = sum(left)
    while bits > 1:
        half = 1 << (bits - 1)
        ones = sum(left[half:])
        if ones and ones >= threshold * total:
            break
        left = left[:half]
        left[-1] += ones
        bits -= 1
    return bits


def clip_to_bits(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the integers clipped to what `bits` planes hold; the others do not move.

    With the step kept, this is the pruning of top planes with its scale correction:
    S' = S (2^b' - 1) / (2^b - 1) is the same step.
    """
    top = (1 << bits) - 1
    return codes.clamp(-top, top)


@lru_cache(maxsize=32)
def _signed_tables(
    bits: int, size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return TINY [bits], and bit j of |q| and ±2^j where it is set, by q modulo `size`.

    All float32; the tables are [bits, size]. Sums of counts are exact below 2^24 weights.
    """
    codes, places = torch.arange(size), torch.arange(bits).unsqueeze(1)
    codes = torch.where(codes < size // 2, codes, codes - size)
    ones = (codes.abs() >> places) & 1
    heights = codes.sign() * (ones << places)
    tables = (torch.full((bits,), TINY), ones, heights)
    tiny, ones, heights = (table.to(device, torch.float32) for table in tables)
    return tiny, ones, heights
