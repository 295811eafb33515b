"""What of a model does not travel: part of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from motley.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """Which values of the global model a client gets and sends (`motley.prune` says which).

    Units that the plan uploads come down whole; weights of the others come down pruned.

    Raises:
        PlanError: a share is not above 0 and at most 1.
    """

    final: str
    """The last unit: whole in both directions."""
    final_stays: bool = False
    """Whether each client keeps a last unit of its own: it goes up and never comes down."""
    down_keep: float = 1.0
    """Share of each pruned tensor's values that comes down."""
    down_rule: str = "magnitude"
    """Name of the pruning rule."""
    up_keep: float = 1.0
    """Share of each weight tensor's values that goes up."""
    up_rule: str = "random"
    """Name of the rule that says which; it sees no data, so that the server knows them too."""

    def __post_init__(self) -> None:
        for name, share in (("comes down", self.down_keep), ("goes up", self.up_keep)):
            if not 0 < share <= 1:
                raise PlanError(f"a share of {share} of the values {name}; expected 0 < share <= 1")

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | None) -> Sparsity | None:
        """Read what `dataclasses.asdict` gave, or nothing."""
        return cls(**document) if document else None
