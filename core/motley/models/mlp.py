"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from motley.errors import WorkloadError
from motley.models.rectifier import Rectifier


class MLP(nn.Module):
    """Fully connected layers `fc1`, `fc2`, ... with ReLU between them."""

    def __init__(self, *, inputs: int, hidden: Sequence[int], classes: int) -> None:
        super().__init__()
        sizes = (inputs, *hidden, classes)
        if min(sizes) < 1:
            raise WorkloadError(f"layer sizes {sizes} of an MLP; expected each to be at least 1")
        for number, (before, after) in enumerate(pairwise(sizes), start=1):
            self.add_module(f"fc{number}", nn.Linear(before, after))
        self.relu = Rectifier()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] of float inputs [B, ...], flattened to [B, inputs]."""
        x = x.flatten(1)
        *hidden, last, relu = self.children()
        for layer in hidden:
            x = relu(layer(x))
        logits: torch.Tensor = last(x)
        return logits


def mlp(*, inputs: int, classes: int, hidden: Sequence[int] = (128, 64)) -> MLP:
    """Return an MLP of `inputs` values, the given hidden sizes, and `classes` logits."""
    return MLP(inputs=inputs, hidden=hidden, classes=classes)
