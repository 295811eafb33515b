"""What the server chose for one client in one round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from motley.errors import PlanError
from motley.sparsity import Sparsity
from motley.workload import Scalar

if TYPE_CHECKING:
    from motley.models.units import TensorInfo

FULL_PRECISION = 32
"""The bit-width that stands for fp32, in plans and in run files."""
HALF = 16
"""fp16; for tensors that no low bit-width applies to."""
Layout = Literal["", "planes", "scalar", "hexagonal"]


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
    """Bit-width of the upload: 32 sends values, 1 to 8 send quantized deltas. As the broadcast's
    it applies to float32 parameters; buffers travel as values (`TensorInfo.takes_wire_bits`)."""
    down_bits: int = FULL_PRECISION
    """Bit-width of the broadcast that this client is offered."""
    iteration: int = 0
    """The run's local iteration at which this task starts. Schedules follow it, never a
    client's own count, so that clients sampled rarely stay in step."""
    iterations: int = 0
    """Local iterations of the whole run."""
    layout: Layout = ""
    """With "planes" the units of `bits` travel as integers in sign-magnitude planes, both ways, and
    an update may leave top planes out; `up_bits` and `down_bits` then have no say. Else the global
    model travels as a whole at those two widths; "scalar" and "hexagonal" name the dithered lattice
    on which differences then go up."""
    tail_bits: int = FULL_PRECISION
    """With "planes": 32 or 16, the width of the float32 tensors that are not in planes."""

    sparsity: Sparsity | None = None
    """What of the model does not travel; None: all of what `upload` names does."""

    def __post_init__(self) -> None:
        check_bits(self.up_bits, "the upload")
        check_bits(self.down_bits, "the broadcast")
        for unit, bits in self.bits.items():
            check_bits(bits, f"unit {unit!r}")
        if self.layout not in get_args(Layout) or self.tail_bits not in (FULL_PRECISION, HALF):
            raise PlanError(
                f"layout {self.layout!r} with a tail of {self.tail_bits} bits; expected one of "
                f"{get_args(Layout)}, and 32 or 16 bits"
            )
        if self.lattice_dimensions and self.up_bits == FULL_PRECISION:
            raise PlanError(f"a {self.layout} lattice with an upload of 32 bits; expected 1 to 8")

    @property
    def sends_delta(self) -> bool:
        """Whether the upload holds differences to the broadcast as decoded, not values.

        In full precision both ways values travel, so that a round is plain averaging to the
        last bit; with either side quantized the server must keep its own full-precision state.
        """
        if self.layout == "planes":
            return False
        return self.up_bits != FULL_PRECISION or self.down_bits != FULL_PRECISION

    @property
    def lattice_dimensions(self) -> int:
        """Values that make one lattice point of the upload; 0: it goes up on no lattice."""
        return {"scalar": 1, "hexagonal": 2}.get(self.layout, 0)

    def withholds(self, unit: str) -> bool:
        """Tell whether a unit is not part of the broadcast: the client keeps one of its own."""
        sparsity = self.sparsity
        return sparsity is not None and sparsity.final_stays and unit == sparsity.final

    def sends_delta_of(self, row: TensorInfo) -> bool:
        """Tell whether a tensor goes up as differences.

        What never came down goes up as values, and so does what low bit-widths do not apply to.
        """
        return self.sends_delta and row.takes_wire_bits and not self.withholds(row.unit)

    def planes_of(self, unit: str, *, quantized: bool) -> int:
        """Return the width at which a tensor of a unit travels in planes; 0: it does not."""
        if self.layout != "planes" or not quantized:
            return 0
        bits = self.bits.get(unit, FULL_PRECISION)
        return 0 if bits == FULL_PRECISION else bits

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a record."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        # Not asdict for all: it copies every setting deeply, for every task of a round.
        values["bits"], values["settings"] = dict(self.bits), dict(self.settings)
        values["sparsity"] = asdict(self.sparsity) if self.sparsity else None
        return values

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Plan:
        """Read what `to_json` wrote."""
        sparsity = Sparsity.from_json(document.get("sparsity"))
        return cls(**{**document, "upload": tuple(document["upload"]), "sparsity": sparsity})
