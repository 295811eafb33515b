"""The convolutional networks of QuPeD's experiments (arXiv 2107.13892, section 5).

CNN1 has two convolutional and three fully connected layers; CNN2 has one more convolution of 32
filters of 5x5. Both come in two widths: the small one ("LeNet", the form that the names `cnn1`
and `cnn2` stand for) and the one of the TensorFlow tutorial (`cnn1_64`, `cnn2_64`). FedP3's
network for CIFAR and Fashion-MNIST (arXiv 2404.09816) is CNN1 in a third width, `cnn1_1024`.

At 28x28 and 32x32 the first two convolutions use no padding. Images below 16x16 are too small
for that; there they pad by two, so that only the pools shrink the image (8x8 becomes 2x2).

>>> sum(p.numel() for p in cnn1(channels=3, classes=10, side=32).parameters())
62006
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from motley.errors import WorkloadError
from motley.models.pooled import rectified_pool
from motley.models.rectifier import Rectifier

KERNEL = 5
SMALLEST_SIDE = 4
SMALLEST_UNPADDED_SIDE = 16
"""Two rounds of a 5x5 convolution without padding and a halving leave nothing of less."""


@dataclass(frozen=True)
class Widths:
    """Filters of the two convolutions and of the optional third, units of the hidden layers."""

    convolutions: tuple[int, int]
    hidden: tuple[int, int]
    third: int = 0
    """Filters of the third convolution; 0: there is none."""


class CNN(nn.Module):
    """Two or three convolutions, two pools, three fully connected layers, ReLU between them."""

    def __init__(
        self, widths: Widths, *, channels: int, classes: int, side: int, border: int = 0
    ) -> None:
        """Build the layers; `border` is what the first convolution pads by where others do not."""
        super().__init__()
        first, second = widths.convolutions
        padding = KERNEL // 2 if side < SMALLEST_UNPADDED_SIDE else 0
        features = widths.third or second
        self.relu = Rectifier()
        self.conv1 = nn.Conv2d(channels, first, KERNEL, padding=padding or border)
        self.conv2 = nn.Conv2d(first, second, KERNEL, padding=padding)
        self.conv3: nn.Conv2d | None = None
        if widths.third:
            self.conv3 = nn.Conv2d(second, widths.third, KERNEL, padding=KERNEL // 2)
        self.fc1 = nn.Linear(features * pooled_side(side + 2 * border) ** 2, widths.hidden[0])
        self.fc2 = nn.Linear(widths.hidden[0], widths.hidden[1])
        self.fc3 = nn.Linear(widths.hidden[1], classes)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] of float images [B, channels, side, side]."""
        x = rectified_pool(self.conv1, self.relu, x_BCHW)
        x = rectified_pool(self.conv2, self.relu, x)
        if self.conv3 is not None:
            x = self.relu(self.conv3(x))
        x = self.relu(self.fc1(x.flatten(1)))
        x = self.relu(self.fc2(x))
        logits: torch.Tensor = self.fc3(x)
        return logits


def pooled_side(side: int) -> int:
    """Return the side of the image behind both pools; raise WorkloadError below 4 pixels."""
    if side < SMALLEST_SIDE:
        raise WorkloadError(
            f"images of {side}x{side} are too small for two pools; "
            f"expected at least {SMALLEST_SIDE}x{SMALLEST_SIDE}"
        )
    lost = KERNEL - 1 if side >= SMALLEST_UNPADDED_SIDE else 0
    return ((side - lost) // 2 - lost) // 2


def cnn1(*, channels: int, classes: int, side: int) -> CNN:
    """Return the LeNet: 6 and 16 filters, 120 and 84 hidden units."""
    return CNN(Widths((6, 16), (120, 84)), channels=channels, classes=classes, side=side)


def cnn2(*, channels: int, classes: int, side: int) -> CNN:
    """Return `cnn1` with a third convolution of 32 filters behind the second pool."""
    return CNN(Widths((6, 16), (120, 84), 32), channels=channels, classes=classes, side=side)


def cnn1_64(*, channels: int, classes: int, side: int) -> CNN:
    """Return the wide form: 64 and 64 filters, 384 and 192 hidden units."""
    return CNN(Widths((64, 64), (384, 192)), channels=channels, classes=classes, side=side)


def cnn2_64(*, channels: int, classes: int, side: int) -> CNN:
    """Return `cnn1_64` with a third convolution of 32 filters behind the second pool."""
    return CNN(Widths((64, 64), (384, 192), 32), channels=channels, classes=classes, side=side)


def cnn1_1024(*, channels: int, classes: int, side: int) -> CNN:
    """Return FedP3's width of CNN1: 64 and 64 filters, 1024 and 1024 hidden units.

    The first convolution pads 28x28 to 32x32, as LeNet's did, so that `fc1` has 1,600 inputs for
    Fashion-MNIST too: what the paper's parameter counts say.
    """
    border = max(0, 32 - side) // 2 if side >= SMALLEST_UNPADDED_SIDE else 0
    widths = Widths((64, 64), (1024, 1024))
    return CNN(widths, channels=channels, classes=classes, side=side, border=border)
