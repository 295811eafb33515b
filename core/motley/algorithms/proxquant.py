"""ProxQuant: binary weights by a proximal step to fixed values, on each device alone.

Bai, Wang and Liberty, "ProxQuant: Quantized Neural Networks via Proximal Operators", ICLR 2019,
arXiv 1810.00861. After each gradient step on x a quantized weight moves towards the nearer of ±1 by
η λ and stops there, the proximal step of λ Σ_i min(|x_i - 1|, |x_i + 1|); λ grows by λ₀ an epoch.
At the end of the run weights are set to ±1 and the rest of the model is trained on.

A baseline of centralized quantization: one device holds all data, or each trains alone (`local`).

| paper | setting |
|---|---|
| η, λ₀ | `learning_rate`, `penalty` (without QuPeD's ½) |
| ±1 | `scale`: "unit", or "magnitude" for models without normalisation; `scale_factor` |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from motley.algorithms.base import Settings
from motley.algorithms.local import Local, ProximalSettings
from motley.plan import FULL_PRECISION
from motley.quantize.rules import CentreRules, Rates
from motley.quantize.schedule import Schedule
from motley.workload import Scalar


class ProxQuantSettings(ProximalSettings):
    """Settings of ProxQuant; `penalty` is the paper's, so that a weight moves by η λ."""

    scale: Literal["unit", "magnitude"] = "unit"
    """The two values of a quantized tensor: ±1, or ± the mean magnitude of its first weights."""
    scale_factor: float = Field(default=1.0, gt=0)
    """Factor on these two values. Weights are kept between them: where the first ones are freshly
    drawn and nothing normalises, their mean magnitude leaves too little of a signal."""

    def rules(self) -> CentreRules:
        """Return fixed centres, between which weights are kept."""
        return CentreRules(start=self.scale, factor=self.scale_factor, clamp=True, fixed=True)

    def rates(self, schedule: Schedule, iteration: int, penalty: float, *, frozen: bool) -> Rates:
        """Return the step sizes of an iteration; `penalty` is λ₀ with the ½."""
        return Rates(
            weights=schedule.rate(self.learning_rate, iteration),
            penalty=schedule.penalty(penalty, iteration, frozen=frozen),
            weight_decay=self.weight_decay,
        )

    def first_penalty(self, distance: float, iterations: int) -> float:
        """Return λ₀ with the ½ inside R: twice the setting."""
        first = super().first_penalty(distance, iterations)
        return first if self.penalty == "auto" else 2 * first


class ProxQuant(Local):
    """Each client trains a model of binary weights on its own."""

    name: ClassVar[str] = "proxquant"
    settings_type: ClassVar[type[Settings]] = ProxQuantSettings
    settings: ProxQuantSettings

    @classmethod
    def tier_fault(cls, bits: int, settings: Mapping[str, Scalar]) -> str:
        """Ask for 1 bit, or full precision."""
        return binary_fault(cls.name, bits)


def binary_fault(name: str, bits: int) -> str:
    """Return what is wrong with a tier's width for a method that knows binary weights alone."""
    if bits in (1, FULL_PRECISION):
        return ""
    return f".bits: {name} knows 1 bit alone; expected 1, or 32 for plain SGD"
