"""The least noise that keeps a promise, found with the dp-accounting library."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

from motley.errors import PrivacyError
from motley.privacy.guarantee import Guarantee
from motley.privacy.rdp import ORDERS, SMALLEST_NOISE
from motley.privacy.settings import noise_fault

_MOST = 1e4
"""Noise multiplier beyond which nothing is sought."""
_PRECISION = 1e-4
"""Of the noise multiplier found, absolute."""


def is_available() -> bool:
    """Return whether the library is installed."""
    return importlib.util.find_spec("dp_accounting") is not None


def noise_multiplier(guarantee: Guarantee) -> float:
    """Return the least z, up to 1e-4, at which a whole run keeps its (ε, δ).

    Found with dp-accounting's Rényi accountant and checked with our own, which clients use.

    Raises:
        PrivacyError: the library is missing, or no noise keeps the promise.
    """
    if not is_available():
        raise PrivacyError(
            "planning noise needs dp-accounting: pip install dp-accounting on the server, "
            "or give noise_multiplier in the run file"
        )
    z = SMALLEST_NOISE
    if noise_fault(guarantee, z):
        with _quiet():
            z = _calibrated(guarantee)
    fault = noise_fault(guarantee, z)
    if fault:
        raise PrivacyError(f"the two accountants differ: {fault}")
    return z


def _calibrated(guarantee: Guarantee) -> float:
    import dp_accounting as dpa
    from dp_accounting.rdp import RdpAccountant

    def event(z: float) -> dpa.DpEvent:
        step = dpa.GaussianDpEvent(z)
        if guarantee.sampling_rate < 1:
            step = dpa.PoissonSampledDpEvent(guarantee.sampling_rate, step)
        return dpa.SelfComposedDpEvent(step, guarantee.steps)

    try:
        found = dpa.calibrate_dp_mechanism(
            lambda: RdpAccountant(list(ORDERS), dpa.NeighboringRelation.ADD_OR_REMOVE_ONE),
            event,
            guarantee.epsilon,
            guarantee.delta,
            dpa.ExplicitBracketInterval(SMALLEST_NOISE, _MOST),
            tol=_PRECISION,
        )
    except ValueError as error:
        raise PrivacyError(
            f"no noise multiplier up to {_MOST:g} keeps epsilon {guarantee.epsilon:g} at delta "
            f"{guarantee.delta:g} over {guarantee.steps} steps ({error}); promise less, or take "
            f"fewer steps"
        ) from None
    return math.ceil(float(found) * 1e6) / 1e6


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from warning of orders that it leaves out."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
