"""The l2 penalty that ties a personal model to a shared one of the same shape.

½ λ ||x - w||², as in pFedMe (arXiv 2006.08848, equation 2) and QuPeL (arXiv 2107.13892, footnote
5). All values are [K, d], one row a client.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from motley.quantize.rules import Ties
from motley.training.flat import FlatModel


def add_pull(
    gradient: torch.Tensor, values: torch.Tensor, anchor: torch.Tensor, strength: float
) -> None:
    """Add the gradient of ½ strength ||values - anchor||² to `gradient`, in place; all [K, d]."""
    gradient.add_(values - anchor, alpha=strength)


def step_towards(
    values: torch.Tensor, others: Sequence[torch.Tensor], rate: float, strength: float
) -> None:
    """Take a gradient step on Σ ½ strength ||values - other||², in place; all [K, d]."""
    gradient = torch.zeros_like(values)
    for other in others:
        gradient.add_(values - other)
    values.add_(gradient, alpha=-rate * strength)


class Anchor:
    """A client's copy of the shared model, and what is tied to it (QuPeL).

    `ties` names the terms of the penalty: "weights" is ||x - w||², "centres" ||Q_c(x) - w||².
    Where x and Q_c(x) are one (full precision, fine-tuning) that one is tied in any case.
    """

    def __init__(self, model: FlatModel, strength: float, ties: Ties = "both") -> None:
        """Take the shared model, laid out as the personal one, λ_p, and the terms."""
        self.model, self.strength, self.ties = model, strength, ties

    def pull(self, gradient: torch.Tensor, values: torch.Tensor) -> None:
        """Add the penalty's gradient in `values` (the whole buffer, or its head) in place."""
        add_pull(gradient, values, self.model.values[:, : values.shape[1]], self.strength)

    def follow(self, tied: Sequence[torch.Tensor], rate: float) -> None:
        """Step the shared model towards the tied values, each [1, d]."""
        step_towards(self.model.values, tied, rate, self.strength)
