"""A small convolutional network over time, for windows of a few sensor channels.

Its convolutions are those of images one pixel wide, because methods that store integers know those.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from motley.errors import WorkloadError
from motley.models.rectifier import Rectifier

KERNEL, POOL = 5, 4


class SensorCNN(nn.Module):
    """Two convolutions, each before a pool that keeps every fourth place, and two linear layers."""

    def __init__(
        self, *, width: int, channels: int, filters: tuple[int, int], hidden: int, classes: int
    ) -> None:
        """Build the layers; raise WorkloadError where windows are too short for the pools."""
        super().__init__()
        if width < POOL**2:
            raise WorkloadError(f"windows of {width} samples; expected {POOL**2} or more")
        self.relu = Rectifier()
        self.conv1 = _convolution(channels, filters[0])
        self.conv2 = _convolution(filters[0], filters[1])
        self.fc1 = nn.Linear(filters[1] * (width // POOL // POOL), hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] of float windows [B, width, channels]."""
        x = x_BTC.transpose(1, 2).unsqueeze(3)
        x = functional.max_pool2d(self.relu(self.conv1(x)), (POOL, 1))
        x = functional.max_pool2d(self.relu(self.conv2(x)), (POOL, 1))
        x = self.relu(self.fc1(x.flatten(1)))
        logits: torch.Tensor = self.fc2(x)
        return logits


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, (KERNEL, 1), padding=(KERNEL // 2, 0))
