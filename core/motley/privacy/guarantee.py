"""What a run promises the owner of a device's data: (ε, δ), for which neighbours and unit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from motley.privacy.rdp import epsilon_of

Mode = Literal["ldp-sgd", "release"]
Unit = Literal["record", "client-release"]

NEIGHBOURING = "add-or-remove-one"
"""Data sets are neighbours when one is the other with one unit more."""

SOTERIAFL_CONSTANT = 8.0
"""c that SoteriaFL's code takes in a formula of the same form; DP-FedP3's theorem gives none."""

UNITS: dict[Mode, Unit] = {"ldp-sgd": "record", "release": "client-release"}
"""What is protected. A record: one training sample. A client-release: all that one client sends in
a round, against a client that sends noise around the broadcast."""


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """One tier's promise and mechanism, without the noise, which `calibration` finds.

    Symbols of DP-FedP3 (arXiv 2404.09816): clip C, sampling rate q = b/m, steps K.
    """

    mode: Mode
    epsilon: float
    delta: float
    clip: float
    """L2 norm: of each record's gradient, or of a whole update's difference to the broadcast."""
    sampling_rate: float = 1.0
    """Probability of each record to be in a step's batch; 1 with "release"."""
    batch_size: int = 1
    """What a step's noisy sum is divided by; 1 with "release"."""
    steps_per_task: int = 1
    """Noisy steps of a task; 1 with "release"."""
    tasks: int = 1
    """Tasks for which the noise is planned."""

    @property
    def unit(self) -> Unit:
        """What is protected."""
        return UNITS[self.mode]

    @property
    def steps(self) -> int:
        """Noisy steps of the whole run, K."""
        return self.steps_per_task * self.tasks

    def epsilon_of(self, noise_multiplier: float, tasks: int | None = None) -> float:
        """Return ε at the promise's δ of so many tasks (default: all) at a noise multiplier."""
        count = self.tasks if tasks is None else tasks
        steps = self.steps_per_task * count
        return epsilon_of(noise_multiplier, self.sampling_rate, steps, self.delta)

    def sigma(self, noise_multiplier: float) -> float:
        """Return σ, the noise's standard deviation on each coordinate that is applied or sent."""
        return noise_multiplier * self.clip / self.batch_size

    def theorem_constant(self, noise_multiplier: float) -> float:
        """Return c of DP-FedP3's theorem for this σ; the theorem says that some constant does."""
        per_record = noise_multiplier / self.sampling_rate
        return per_record**2 * self.epsilon**2 / (self.steps * math.log(1 / self.delta))

    def theorem_sigma(self, constant: float = SOTERIAFL_CONSTANT) -> float:
        """Return σ of DP-FedP3's theorem, σ² = c K C² ln(1/δ) / (m² ε²) with m = b/q.

        It is stated beside the accountant's and never used: with c = 8 it is about twice that.
        """
        records = self.batch_size / self.sampling_rate
        root = math.sqrt(constant * self.steps * math.log(1 / self.delta))
        return root * self.clip / (records * self.epsilon)

    def statement(self, noise_multiplier: float) -> dict[str, Any]:
        """Return what a run's record says, as plain values."""
        return {
            "mode": self.mode,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "neighbouring": NEIGHBOURING,
            "unit": self.unit,
            "clip": self.clip,
            "sampling_rate": self.sampling_rate,
            "steps": self.steps,
            "noise_multiplier": noise_multiplier,
            "planned_epsilon": self.epsilon_of(noise_multiplier),
            "sigma": self.sigma(noise_multiplier),
            "theorem_sigma": self.theorem_sigma(),
            "c_eff": self.theorem_constant(noise_multiplier),
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a job."""
        return asdict(self)
