"""ReLU whose outputs a method can have in few bits."""

from __future__ import annotations

import torch
from torch import nn

from motley.quantize.activations import quantize_activations


class Rectifier(nn.Module):
    """ReLU; with `bits`, activations are bounded by 6 and rounded to 2^bits - 1 levels.

    FedMPQ (arXiv 2311.18129) trains with 4-bit activations and evaluates without: whoever trains
    sets `bits` on the model at hand (`set_activation_bits`).
    """

    bits: int = 0
    """0: full precision."""
    clients: int = 1
    """Of so many clients are the samples of a batch; each one's activations have a range."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rectified values, in the shape of `x`."""
        return quantize_activations(x, self.bits, self.clients) if self.bits else torch.relu(x)


def set_activation_bits(module: nn.Module, bits: int, clients: int = 1) -> None:
    """Set the bit-width of every `Rectifier` in a model of `clients`; 0 is full precision."""
    for child in module.modules():
        if isinstance(child, Rectifier):
            child.bits, child.clients = bits, clients
