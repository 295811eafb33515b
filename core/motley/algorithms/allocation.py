"""Bit-widths of every layer for every client: FedMPQ's pruning-growing allocation.

Chen and Vikalo, CVPR 2024 (arXiv 2311.18129), Algorithm 2. All comparisons are between integers
(or exact fractions, where a budget is one): rounded arithmetic decides differently at a budget
that the start meets exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from motley.device import Link

NARROWEST = 1
WIDEST = 8


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one client's last counted update told: what it may use, and what it sent."""

    samples: int
    budget: float
    """v_k: bits a weight, averaged over the weights of all quantized layers."""
    bits: Mapping[str, int]
    """b'_k: the width of each layer as it came."""
    removed: Mapping[str, int]
    """Δ_k: planes that the client pruned from each layer."""


def weighted_widths(
    reports: Sequence[Report], units: Sequence[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Return (bbar, dbar): the clients' mean widths, and 1 + their mean removed bits, rounded.

    Clients weigh samples x budget, normalised over those that reported; halves go to even. When
    none of them has samples, they weigh the same.
    """
    weights = [Fraction(r.samples) * Fraction(r.budget) for r in reports]
    if not any(weights):
        weights = [Fraction(1)] * len(reports)
    total = sum(weights)
    pairs = list(zip(weights, reports, strict=True))
    widths = {u: round(sum(w * r.bits[u] for w, r in pairs) / total) for u in units}
    removed = {u: round(1 + sum(w * r.removed[u] for w, r in pairs) / total) for u in units}
    return widths, removed


def allocate(
    start: Mapping[str, int],
    removed: Mapping[str, int],
    sizes: Mapping[str, int],
    budget: float,
    *,
    strict: bool = True,
) -> dict[str, int]:
    """Return the width of each layer for a client that may use `budget` bits a weight on average.

    From `start`, layers of high priority (size x removed bits, Algorithm 2) give bits away until
    the budget holds, one layer to its last bit before the next; then those of low priority get
    bits while some are left. Among equals the earlier layer comes first.

    Args:
        start: width of each layer to begin with, the same for all clients (bbar).
        removed: 1 + the bits that clients removed from each layer (dbar).
        sizes: number of weights of each layer; order and names are those of the result.
        budget: v_k.
        strict: whether growing stops below the budget; else it may end one small step above it,
            as in the released code.
    """
    bits = {unit: start[unit] for unit in sizes}
    limit = Fraction(budget) * sum(sizes.values())
    used = sum(sizes[unit] * bits[unit] for unit in sizes)
    priority = {unit: sizes[unit] * removed[unit] for unit in sizes}
    for unit in sorted(sizes, key=lambda u: -priority[u]):
        while used > limit and bits[unit] > NARROWEST:
            bits[unit] -= 1
            used -= sizes[unit]
    for unit in sorted(sizes, key=lambda u: priority[u]):
        while used < limit and bits[unit] < WIDEST:
            if strict and used + sizes[unit] > limit:
                break
            bits[unit] += 1
            used += sizes[unit]
    return bits


def average_bits(bits: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    """Return the mean width over all weights."""
    return sum(sizes[unit] * bits[unit] for unit in sizes) / sum(sizes.values())


def affordable_budget(weights: int, tail_bytes: int, link: Link, seconds: float) -> float:
    """Return the widest budget, 1 to 8 in whole bits, that a device's link and storage allow.

    The rule of `budget = "auto"`: a payload of `weights` weights at v bits and their signs, with
    `tail_bytes` in full precision, must travel both ways in half of the round's `seconds` (the
    other half is for training), and three of them must fit into a tenth of the free storage (the
    broadcast, the update, and one that is being written). What the device has not measured yet
    does not limit it; a device for which one bit is too much gets one bit all the same.
    """
    for budget in range(WIDEST, NARROWEST, -1):
        payload = weights * (budget + 1) / 8 + tail_bytes
        travel = sum(payload / speed for speed in (link.download, link.upload) if speed > 0)
        fits = not link.storage or 3 * payload <= link.storage / 10
        if travel <= seconds / 2 and fits:
            return float(budget)
    return float(NARROWEST)
