"""The accountant: Rényi differential privacy of the Gaussian mechanism under Poisson sampling.

A step sums vectors of norm at most C and adds N(0, z²C² I). Each record is in the sum with
probability q, drawn anew at every step (q = 1: always). For neighbouring data sets, which differ by
one record added or removed, the two laws of the sum are, in units of C and along one axis,
μ₀ = N(0, z²) and μ = (1 - q) N(0, z²) + q N(1, z²). The divergence of order α > 1 of μ from μ₀ is

    ρ(α) = ln A_α / (α - 1),    A_α = E_{x ~ μ₀} [ ((1 - q) + q exp((2x - 1) / (2z²)))^α ],

and that of μ₀ from μ is no greater (Mironov, Talwar, Zhang, "Rényi Differential Privacy of the
Sampled Gaussian Mechanism", arXiv 1908.10530, theorem 5). Steps compose by adding ρ(α) for each α.
A guarantee (ε, δ) follows from each order, and the smallest ε counts:

    ε = ρ(α) + ln((α - 1) / α) - (ln δ + ln α) / (α - 1)

(Canonne, Kamath, Steinke, arXiv 2004.00010, proposition 12). Needs numpy alone, so that a device
can check what a server planned.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

ORDERS: tuple[float, ...] = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 64)),
    *(96.0, 128.0, 192.0, 256.0, 512.0, 1024.0),
)
"""The α at which divergences are kept."""

SMALLEST_NOISE = 0.1
"""The least z of a sampled mechanism: below it no ε means anything, and the grid grows."""

_REACH = 12.0
"""Standard deviations beyond the outermost mass at which the integral is cut: 1e-32 of it."""
_ROUNDING = 1e-13
"""Added to ln A_α, so that rounding never makes a bound too small."""

Divergences = tuple[float, ...]
"""ρ(α) for each of `ORDERS`."""

NOTHING: Divergences = (0.0,) * len(ORDERS)


@lru_cache(maxsize=256)
def sampled_gaussian(z: float, q: float) -> Divergences:
    """Return ρ(α) of one step for each of `ORDERS`.

    Args:
        z: noise multiplier, standard deviation over sensitivity; at least `SMALLEST_NOISE`, or just
            above 0 where q is 1.
        q: probability with which a record is in a step's batch, above 0 up to 1.

    Raises:
        ValueError: z or q is out of range.
    """
    if not (0 < z < math.inf and 0 < q <= 1 and (z >= SMALLEST_NOISE or q == 1)):
        raise ValueError(
            f"noise multiplier {z}, sampling rate {q}; expected at least {SMALLEST_NOISE}, and "
            f"above 0 up to 1"
        )
    if q == 1.0:
        return tuple(order / (2 * z * z) for order in ORDERS)
    return tuple(_log_moment(order, z, q) / (order - 1) for order in ORDERS)


def compose(first: Divergences, second: Divergences, times: int = 1) -> Divergences:
    """Return the divergences of a mechanism followed by another one `times` times."""
    return tuple(a + times * b for a, b in zip(first, second, strict=True))


def epsilon_at(divergences: Divergences, delta: float) -> float:
    """Return the smallest ε >= 0 for which (ε, δ) follows from the divergences.

    Raises:
        ValueError: δ is not above 0 and below 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta = {delta}; expected above 0 and below 1")
    found = math.inf
    for order, rho in zip(ORDERS, divergences, strict=True):
        if delta * delta + math.expm1(-rho) > 0:
            return 0.0  # total variation <= sqrt(1 - exp(-KL)) (Bretagnolle and Huber), KL <= ρ
        bound = rho + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        found = min(found, bound)
    return max(0.0, found)


def epsilon_of(z: float, q: float, steps: int, delta: float) -> float:
    """Return ε at δ of so many equal steps."""
    return epsilon_at(compose(NOTHING, sampled_gaussian(z, q), steps), delta)


def _log_moment(order: float, z: float, q: float) -> float:
    """Return ln A_α by the trapezoidal rule.

    The integrand is analytic but for poles π z² off the real axis, so the rule's error falls as
    exp(-2π² z² / h²) and exp(-2π² z² / h) with the step h (Trefethen and Weideman, SIAM Review 56,
    2014): below 1e-30 here. Its mass lies around 0 to α.
    """
    step = min(z / 8, z * z / 4)
    x = np.arange(-_REACH * z, order + _REACH * z + step, step)
    log_ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * z * z))
    log_terms = order * log_ratio - x * x / (2 * z * z)
    top = float(log_terms.max())
    total = math.fsum(np.exp(log_terms - top).tolist())
    return top + math.log(total * step / (z * math.sqrt(2 * math.pi))) + _ROUNDING
