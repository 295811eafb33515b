"""Settings that all methods with differential privacy share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from motley.privacy.guarantee import Guarantee
from motley.privacy.rdp import SMALLEST_NOISE

TOLERANCE = 1e-6
"""Relative excess of ε that is rounding, between two accountants of the same mechanism."""


class PrivacySettings(BaseModel):
    """What is promised, and the mechanism. Mixed into a method's settings, which give the rest.

    `batch_size` is b; in "ldp-sgd" it divides the noisy sum and says nothing of how many records
    there are: that number would itself be data.
    """

    privacy: Literal["none", "ldp-sgd", "release"] = "none"
    """"ldp-sgd": noise at every local step; "release": noise on the whole update."""
    epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """What a client's run may spend, at `delta`."""
    delta: float | None = Field(default=None, gt=0, lt=1)
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """C, an L2 norm."""
    sampling_rate: float | None = Field(default=None, gt=0, le=1)
    """"ldp-sgd": q, with which each record is in a step's batch."""
    noise_multiplier: float | None = Field(default=None, ge=SMALLEST_NOISE, allow_inf_nan=False)
    """z, noise over clip; without it the server finds the least that keeps the promise."""
    spare_tasks: int = Field(default=0, ge=0)
    """Tasks beyond one a round that the noise is planned for: repeated attempts spend too."""
    microbatch: int = Field(default=0, ge=0)
    """Records whose gradients are held at once; 0: as many as fit into 64 MiB."""

    @model_validator(mode="after")
    def _whole_promise(self) -> PrivacySettings:
        promise = {"epsilon", "delta", "sampling_rate", "noise_multiplier"}
        given = promise & {name for name in promise if getattr(self, name) is not None}
        if self.privacy == "none":
            if given:
                raise ValueError(
                    f'{", ".join(sorted(given))} without privacy; set privacy to "ldp-sgd" or '
                    f'"release"'
                )
            return self
        missing = {"epsilon", "delta"} - given
        if self.privacy == "ldp-sgd":
            missing |= {"sampling_rate"} - given
        if missing:
            raise ValueError(f'privacy = "{self.privacy}" needs {", ".join(sorted(missing))}')
        if self.privacy == "ldp-sgd" and getattr(self, "batches_per_pass", None) is not None:
            raise ValueError(
                'privacy = "ldp-sgd" draws each batch anew, so there are no passes; give '
                "batch_size and sampling_rate instead of batches_per_pass"
            )
        if self.privacy == "release" and self.sampling_rate is not None:
            raise ValueError(
                'sampling_rate belongs to privacy = "ldp-sgd"; whoever sees the releases sees who '
                "sends, so that sampling clients protects nobody"
            )
        return self


def guarantee_of(settings: BaseModel, rounds: int) -> Guarantee | None:
    """Return what a method's settings promise for a run of so many rounds; None: nothing.

    `settings` are any method's; those with `PrivacySettings` among them also have `local_steps`
    and `batch_size`.
    """
    if not isinstance(settings, PrivacySettings) or settings.privacy == "none":
        return None
    assert settings.epsilon is not None
    assert settings.delta is not None
    promise: dict[str, object] = {
        "mode": settings.privacy,
        "epsilon": settings.epsilon,
        "delta": settings.delta,
        "clip": settings.clip,
        "tasks": rounds + settings.spare_tasks,
    }
    if settings.privacy == "ldp-sgd":
        promise |= {
            "sampling_rate": settings.sampling_rate,
            "batch_size": getattr(settings, "batch_size", None) or 25,
            "steps_per_task": settings.local_steps,  # type: ignore[attr-defined]
        }
    return Guarantee(**promise)  # type: ignore[arg-type]


def noise_fault(guarantee: Guarantee, noise_multiplier: float) -> str:
    """Return what is wrong with a noise multiplier that breaks the promise, or ""."""
    found = guarantee.epsilon_of(noise_multiplier)
    if found <= guarantee.epsilon * (1 + TOLERANCE):
        return ""
    return (
        f"noise_multiplier {noise_multiplier:.6g} gives epsilon {found:.4g} at delta "
        f"{guarantee.delta:g} over {guarantee.steps} noisy steps, and the run promises "
        f"{guarantee.epsilon:g}; raise it, or leave it out to have it planned"
    )
