"""Residual networks for images of 32x32 (He et al., CVPR 2016, section 4.2): ResNet-20, -32, -44.

A 3x3 convolution, three stages of n blocks with 16, 32 and 64 filters, the mean over the image,
one linear layer: depth 6 n + 2. Shortcuts that change the shape are 1x1 convolutions ("option
B"); low bit-widths never apply to them nor to batch normalisation (FedMPQ's choice of layers).
"""

from __future__ import annotations

import torch
from torch import nn

from motley.errors import WorkloadError
from motley.models.rectifier import Rectifier

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation, added to the input or its 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = Rectifier()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = Rectifier()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return [B, outputs, H / stride, W / stride]."""
        x = self.relu1(self.bn1(self.conv1(x_BCHW)))
        x = self.bn2(self.conv2(x))
        out: torch.Tensor = self.relu2(x + self.shortcut(x_BCHW))
        return out


class ResNet(nn.Module):
    """Three stages of residual blocks."""

    def __init__(self, blocks: int, *, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        # torch's own: the first activation keeps full precision (FedMPQ's models do so).
        self.relu = nn.ReLU()
        self.stage1 = _stage(blocks, WIDTHS[0], WIDTHS[0], 1)
        self.stage2 = _stage(blocks, WIDTHS[0], WIDTHS[1], 2)
        self.stage3 = _stage(blocks, WIDTHS[1], WIDTHS[2], 2)
        self.fc = nn.Linear(WIDTHS[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] of float images [B, channels, H, W]."""
        x = self.relu(self.bn1(self.conv1(x_BCHW)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def resnet(depth: int, *, channels: int, classes: int) -> ResNet:
    """Return a ResNet of 6 n + 2 layers; raise WorkloadError for another depth."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise WorkloadError(f"a ResNet of {depth} layers; expected 6 n + 2, e.g. 20, 32 or 44")
    return ResNet(blocks, channels=channels, classes=classes)


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))
