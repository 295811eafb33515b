"""Fashion-MNIST with a small convolutional network: what the comparison of FedMPQ trains.

Four 3x3 convolutions with batch normalisation and a linear layer, in sizes that differ by 256:
an allocation has something to choose between, and 2,000 local steps take seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from motley.data import idx
from motley.data.draws import Indices, Labels
from motley.models.rectifier import Rectifier
from motley.workload import Variant
from motley.workloads.images import Mnist
from motley.workloads.shares import Part

FILTERS = (8, 16, 32, 64)
STRIDES = (2, 2, 1, 1)
VALIDATION = 10_000
"""Training images, the last ones of the published part, that rates are chosen on."""


class SmallNet(nn.Module):
    """Four convolutions, each with batch normalisation and a rectifier; the mean; a layer."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (1, *FILTERS[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 3, s, padding=1, bias=False)
            for i, o, s in zip(inputs, FILTERS, STRIDES, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(filters) for filters in FILTERS)
        self.relus = nn.ModuleList(Rectifier() for _ in FILTERS)
        self.fc = nn.Linear(FILTERS[-1], 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits [B, 10] of images [B, 1, 28, 28]."""
        x = x_BCHW
        layers = zip(self.convolutions, self.norms, self.relus, strict=True)
        for place, (convolution, norm, relu) in enumerate(layers):
            x = relu(norm(convolution(x)))
            if place == 2:
                x = functional.max_pool2d(x, 2)
        logits: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


@lru_cache(maxsize=4)
def _read(folder: Path, file: str) -> npt.NDArray[np.generic]:
    """Read a published file once for all cells of the comparison."""
    return idx.read_idx(idx.find_idx(folder, file))


class FashionSmall(Mnist):
    """The published set with the small network."""

    def variants(self) -> Mapping[str, Variant]:
        """Return the small network."""
        return {"small": Variant(SmallNet)}

    def labels(self, folder: Path, part: Part) -> Labels:
        """Return the labels of a published part."""
        return _read(folder, f"{_stem(part)}-labels-idx1-ubyte").astype(np.int64)

    def images(self, folder: Path, part: Part, indices: Indices) -> npt.NDArray[np.float32]:
        """Return images of a published part, scaled to 0 to 1."""
        pixels = _read(folder, f"{_stem(part)}-images-idx3-ubyte")
        images = pixels[indices, None].astype(np.float32)
        images /= np.float32(255)
        return images


class FashionTuning(FashionSmall):
    """The published training part alone: its last images stand for the test part."""

    def labels(self, folder: Path, part: Part) -> Labels:
        """Return the labels of one side of the training part."""
        found = super().labels(folder, "train")
        return found[:-VALIDATION] if part == "train" else found[-VALIDATION:]

    def images(self, folder: Path, part: Part, indices: Indices) -> npt.NDArray[np.float32]:
        """Return images of one side of the training part."""
        offset = 0 if part == "train" else len(super().labels(folder, "train")) - VALIDATION
        return super().images(folder, "train", indices + offset)


def _stem(part: Part) -> str:
    return "train" if part == "train" else "t10k"
