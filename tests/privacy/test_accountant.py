"""The accountant against closed forms, direct integration and dp-accounting."""

from __future__ import annotations

import logging
import math
from itertools import product

import numpy as np
import pytest

from motley.errors import PrivacyError
from motley.privacy.calibration import noise_multiplier
from motley.privacy.guarantee import Guarantee
from motley.privacy.rdp import (
    NOTHING,
    ORDERS,
    compose,
    epsilon_at,
    epsilon_of,
    sampled_gaussian,
)

DELTA = 1e-5
GRID = list(product((0.5, 1.1, 4.0, 30.0), (0.001, 0.02, 0.114, 0.5), (1, 90, 4500)))


@pytest.fixture(autouse=True)
def _quiet_library() -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)


def test_without_sampling_it_is_the_closed_form_of_the_gaussian() -> None:
    found = sampled_gaussian(2.5, 1.0)
    assert found == tuple(order / (2 * 2.5**2) for order in ORDERS)


@pytest.mark.parametrize(("z", "q"), [(0.7, 0.01), (1.5, 0.1), (5.0, 0.4), (0.3, 0.9)])
def test_integer_orders_are_the_binomial_sum(z: float, q: float) -> None:
    """Mironov et al., equation for integer α, in exact binomials and extended sums."""
    found = dict(zip(ORDERS, sampled_gaussian(z, q), strict=True))
    for order in (2, 3, 8):
        terms = [
            math.comb(order, k) * (1 - q) ** (order - k) * q**k * math.exp(k * (k - 1) / 2 / z**2)
            for k in range(order + 1)
        ]
        assert found[order] == pytest.approx(math.log(math.fsum(terms)) / (order - 1), rel=1e-9)


@pytest.mark.parametrize(("z", "q"), [(0.6, 0.02), (1.1, 0.114), (6.0, 0.5)])
def test_fractional_orders_and_both_directions_are_those_of_direct_integration(
    z: float, q: float
) -> None:
    """Integrate the two densities themselves, in another way than the accountant does."""
    integrate = pytest.importorskip("scipy.integrate")

    def log_density(x: float, mean: float) -> float:
        return -((x - mean) ** 2) / (2 * z * z) - math.log(z * math.sqrt(2 * math.pi))

    def log_mixture(x: float) -> float:
        return float(
            np.logaddexp(math.log1p(-q) + log_density(x, 0), math.log(q) + log_density(x, 1))
        )

    def divergence(order: float, *, forward: bool) -> float:
        def integrand(x: float) -> float:
            p, r = log_mixture(x), log_density(x, 0)
            return math.exp(order * p - (order - 1) * r if forward else order * r - (order - 1) * p)

        marks = [float(m) for m in range(math.ceil(order) + 1)]
        ends = (-15 * z, order + 15 * z)
        total, _ = integrate.quad(integrand, *ends, points=marks, limit=500, epsabs=1e-13)
        return math.log(total) / (order - 1)

    found = dict(zip(ORDERS, sampled_gaussian(z, q), strict=True))
    for order in (1.5, 2.7, 6.3):
        assert found[order] == pytest.approx(divergence(order, forward=True), rel=1e-7, abs=1e-11)
        assert divergence(order, forward=False) <= found[order] + 1e-11


@pytest.mark.parametrize(("z", "q", "steps"), GRID)
def test_epsilon_is_that_of_dp_accounting(z: float, q: float, steps: int) -> None:
    """At integer orders alone, where both are exact: equal. With all orders: never above."""
    dpa = pytest.importorskip("dp_accounting")
    from dp_accounting.rdp import RdpAccountant

    def theirs(orders: list[float]) -> float:
        step = dpa.PoissonSampledDpEvent(q, dpa.GaussianDpEvent(z))
        accountant = RdpAccountant(orders)
        accountant.compose(dpa.SelfComposedDpEvent(step, steps))
        return float(accountant.get_epsilon(DELTA))

    composed = compose(NOTHING, sampled_gaussian(z, q), steps)
    whole = [order for order in ORDERS if order.is_integer()]
    at_whole = [
        rho if o.is_integer() else math.inf for o, rho in zip(ORDERS, composed, strict=True)
    ]
    expected = theirs(whole)
    assert epsilon_at(tuple(at_whole), DELTA) == pytest.approx(expected, rel=1e-7, abs=1e-9)
    assert epsilon_at(composed, DELTA) <= min(expected, theirs(list(ORDERS))) * (1 + 1e-7) + 1e-9


def test_the_conversion_is_valid_for_the_exact_curve_of_a_gaussian() -> None:
    """Balle and Wang, 2018, theorem 8: the exact δ of a Gaussian mechanism at ε."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    for z, steps in product((1.0, 3.0, 10.0), (1, 16)):
        mean = math.sqrt(steps) / z  # so many steps are one with this distance of means
        found = epsilon_of(z, 1.0, steps, DELTA)
        exact = phi(mean / 2 - found / mean) - math.exp(found) * phi(-mean / 2 - found / mean)
        assert exact <= DELTA
        less = 0.85 * found  # and it is not far off
        assert phi(mean / 2 - less / mean) - math.exp(less) * phi(-mean / 2 - less / mean) > DELTA


def test_nothing_spent_is_no_epsilon_and_more_is_more() -> None:
    assert epsilon_at(NOTHING, DELTA) == 0.0
    values = [epsilon_of(1.1, 0.05, steps, DELTA) for steps in (1, 10, 100, 1000)]
    assert values == sorted(set(values))
    with pytest.raises(ValueError, match="expected above 0 and below 1"):
        epsilon_at(NOTHING, 0.0)
    with pytest.raises(ValueError, match="sampling rate"):
        sampled_gaussian(0.05, 0.5)


@pytest.mark.parametrize(
    ("epsilon", "expected"), [(1.0, (28.61, 31.05)), (4.0, (8.19, 8.93)), (8.0, (4.51, 4.96))]
)
def test_calibration_keeps_the_promise_and_wastes_little(
    epsilon: float, expected: tuple[float, float]
) -> None:
    """DP-FedP3's sizes: 50 releases; and 50 rounds of 90 steps at b = 48, m = 420."""
    pytest.importorskip("dp_accounting")
    release = Guarantee(mode="release", epsilon=epsilon, delta=DELTA, clip=1.0, tasks=50)
    steps = Guarantee(
        mode="ldp-sgd", epsilon=epsilon, delta=DELTA, clip=1.0, sampling_rate=48 / 420,
        batch_size=48, steps_per_task=90, tasks=50,
    )  # fmt: skip
    for guarantee, about in zip((release, steps), expected, strict=True):
        z = noise_multiplier(guarantee)
        assert z == pytest.approx(about, abs=0.01)
        assert guarantee.epsilon_of(z) <= epsilon
        assert guarantee.epsilon_of(0.999 * z) > epsilon


def test_the_theorems_constant_by_hand() -> None:
    """σ = 0.2 at b = 10, m = 100, C = 1: z = 2, q = 0.1, K = 40; c = σ² m² ε² / (K C² ln(1/δ))."""
    guarantee = Guarantee(
        mode="ldp-sgd", epsilon=3.0, delta=math.exp(-9), clip=1.0, sampling_rate=0.1,
        batch_size=10, steps_per_task=20, tasks=2,
    )  # fmt: skip
    assert guarantee.sigma(2.0) == pytest.approx(0.2)
    assert guarantee.theorem_constant(2.0) == pytest.approx(0.2**2 * 100**2 * 9 / (40 * 9))
    assert guarantee.theorem_sigma(8.0) == pytest.approx(math.sqrt(8 * 40 * 9 / (100**2 * 9)))
    assert guarantee.theorem_sigma(guarantee.theorem_constant(2.0)) == pytest.approx(0.2)


def test_a_promise_that_no_noise_keeps_is_said() -> None:
    pytest.importorskip("dp_accounting")
    impossible = Guarantee(mode="release", epsilon=1e-6, delta=1e-9, clip=1.0, tasks=1000)
    with pytest.raises(PrivacyError, match="no noise multiplier up to"):
        noise_multiplier(impossible)
