"""What an export says it did: a record for scripts, sentences for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from motley.export.predictions import Agreement

KB = 1000


@dataclass(frozen=True)
class Written:
    """What a format's writer did."""

    size: int
    """Bytes of the file."""
    agreement: Agreement | None = None
    """The file in its runtime against the model in torch; None where it was not run."""
    plain: tuple[str, ...] = ()
    """Packed tensors that the file has in full precision, or not at all: the model's own code
    changes them or does not use them."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written."""

    file: Path
    format: str
    run: str
    """Id of the run."""
    client: str
    """"" for a global model."""
    variant: str
    size: int
    """Bytes of the file."""
    dense_bytes: int
    """Bytes of the same tensors in full precision."""
    digest: str
    """Of the tensors that it holds (`About.digest`)."""
    half_ends: Agreement | None = None
    """The model with its ends in fp16 against the one without; None where that was not asked for
    or a value overflows. The file holds them so where no prediction changed."""
    agreement: Agreement | None = None
    """As in `Written`."""
    plain: tuple[str, ...] = ()
    """As in `Written`."""
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return it as plain values."""
        own = {**asdict(self), "file": str(self.file), "bytes": self.size}
        del own["size"]
        return own

    def lines(self) -> list[str]:
        """Return it as sentences."""
        share = self.size / max(1, self.dense_bytes)
        lines = [
            f"{self.file}: {self.size / KB:,.1f} KB, {share:.1%} of the "
            f"{self.dense_bytes / KB:,.1f} KB that the model takes in full precision"
        ]
        if self.agreement is not None:
            same = self.agreement.samples - self.agreement.changed
            lines.append(
                f"its runtime gives the same prediction as the model on {same:,} of "
                f"{self.agreement.samples:,} samples; outputs are apart by at most "
                f"{self.agreement.apart:.1g} of the largest"
            )
        if self.plain:
            lines.append(f"not stored in few bits: {', '.join(self.plain)}")
        return [*lines, *self.notes]
