"""What the server chose for one client in one round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from motley.errors import PlanError
from motley.workload import Scalar

FULL_PRECISION = 32
"""The bit-width that stands for fp32, in plans and in run files."""


def check_bits(bits: int, what: str) -> int:
    """Return `bits` when it is 32 (fp32) or 1 to 8; raise PlanError otherwise."""
    if bits != FULL_PRECISION and not 1 <= bits <= 8:
        raise PlanError(f"{what} is {bits} bits; expected 1 to 8, or 32 for full precision")
    return bits


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One client's share of a round: what it trains, at which widths, and what it sends."""

    variant: str
    """Model variant that the client trains."""
    bits: Mapping[str, int] = field(default_factory=dict)
    """Bit-width of each unit of that variant; a unit not named is in full precision."""
    upload: tuple[str, ...] = ()
    """Units to send; empty means all."""
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    """The algorithm's settings for this client: the run's, with the tier's on top."""
    up_bits: int = FULL_PRECISION
    """Bit-width of the upload: 32 sends values, 1 to 8 send quantized deltas."""
    down_bits: int = FULL_PRECISION
    """Bit-width of the broadcast that this client is offered."""
    iteration: int = 0
    """The run's local iteration at which this task starts. Schedules follow it, never a
    client's own count, so that clients sampled rarely stay in step."""
    iterations: int = 0
    """Local iterations of the whole run."""

    def __post_init__(self) -> None:
        check_bits(self.up_bits, "the upload")
        check_bits(self.down_bits, "the broadcast")
        for unit, bits in self.bits.items():
            check_bits(bits, f"unit {unit!r}")

    @property
    def sends_delta(self) -> bool:
        """Whether the upload holds differences to the broadcast as decoded, not values.

        In full precision both ways values travel, so that a round is plain averaging to the
        last bit; with either side quantized the server must keep its own full-precision state.
        """
        return self.up_bits != FULL_PRECISION or self.down_bits != FULL_PRECISION

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a record."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Plan:
        """Read what `to_json` wrote."""
        return cls(**{**document, "upload": tuple(document["upload"])})
