"""Residual networks for images of 32x32 (He et al., CVPR 2016): ResNet-20, -32, -44 and -18.

A 3x3 convolution, stages of blocks, the mean over the image, one linear layer. ResNet-20, -32
and -44 (section 4.2 there) have three stages of n blocks with 16, 32 and 64 filters, depth 6 n + 2;
ResNet-18 has four stages of two blocks with 64 to 512 filters, and here the 3x3 stem that images of
32x32 need. Shortcuts that change the shape are 1x1 convolutions ("option B"); low bit-widths never
apply to them nor to normalisation (FedMPQ's choice of layers).

>>> sum(p.numel() for p in resnet18(channels=3, classes=10).parameters())
11173962
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from motley.errors import WorkloadError
from motley.models.rectifier import Rectifier

WIDTHS = (16, 32, 64)
WIDTHS_18 = (64, 128, 256, 512)
GROUPS = 8
"""Groups of channels in group normalisation; divides every width."""

Normalise = Callable[[int], nn.Module]
"""Makes the normalisation of so many channels."""


class Block(nn.Module):
    """Two normalised 3x3 convolutions, added to the input or its 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, normalise: Normalise) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = normalise(outputs)
        self.relu1 = Rectifier()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = normalise(outputs)
        self.relu2 = Rectifier()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), normalise(outputs)
            )

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return [B, outputs, H / stride, W / stride]."""
        x = self.relu1(self.bn1(self.conv1(x_BCHW)))
        x = self.bn2(self.conv2(x))
        out: torch.Tensor = self.relu2(x + self.shortcut(x_BCHW))
        return out


class ResNet(nn.Module):
    """Stages `stage1`, `stage2`, ... of residual blocks, each but the first at half the side."""

    def __init__(
        self,
        blocks: int,
        *,
        channels: int,
        classes: int,
        widths: Sequence[int] = WIDTHS,
        normalise: Normalise = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = normalise(widths[0])
        # torch's own: the first activation keeps full precision (FedMPQ's models do so).
        self.relu = nn.ReLU()
        self._stages = tuple(f"stage{number}" for number in range(1, len(widths) + 1))
        before, stride = widths[0], 1
        for name, width in zip(self._stages, widths, strict=True):
            self.add_module(name, _stage(blocks, before, width, stride, normalise))
            before, stride = width, 2
        self.fc = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] of float images [B, channels, H, W]."""
        x = self.relu(self.bn1(self.conv1(x_BCHW)))
        for name in self._stages:
            x = self.get_submodule(name)(x)
        logits: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def resnet(depth: int, *, channels: int, classes: int) -> ResNet:
    """Return a ResNet of 6 n + 2 layers; raise WorkloadError for another depth."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise WorkloadError(f"a ResNet of {depth} layers; expected 6 n + 2, e.g. 20, 32 or 44")
    return ResNet(blocks, channels=channels, classes=classes)


def resnet18(*, channels: int, classes: int, groups: int = 0) -> ResNet:
    """Return ResNet-18 with a 3x3 stem.

    Args:
        channels: of an image.
        classes: number of logits.
        groups: of channels, each normalised for every sample by itself (group normalisation, Wu and
            He, ECCV 2018), as clipping each sample's gradient demands; 0: batch normalisation.
    """
    normalise: Normalise = (lambda width: nn.GroupNorm(groups, width)) if groups else nn.BatchNorm2d
    return ResNet(2, channels=channels, classes=classes, widths=WIDTHS_18, normalise=normalise)


def _stage(
    blocks: int, inputs: int, outputs: int, stride: int, normalise: Normalise
) -> nn.Sequential:
    first = Block(inputs, outputs, stride, normalise)
    return nn.Sequential(first, *(Block(outputs, outputs, 1, normalise) for _ in range(blocks - 1)))
