"""A workload of one's own: benign or malignant, from 30 measurements of a tumour's cells.

The data is scikit-learn's bundled breast cancer set, 569 samples, so nothing is downloaded. A
device's share is named behind `--data`: `bundled?clients=2&client=0`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from motley.errors import DataError
from motley.workload import DataSpec, LocalData, Split, Variant, Workload

FEATURES, CLASSES = 30, 2
OPTIONS = ("clients", "client")
TRAIN = 0.7


class Net(nn.Module):
    """Fully connected layers of equal width between a first and a last one."""

    def __init__(self, *, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, width)
        self.body = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, 2] of measurements [B, 30]."""
        x = torch.relu(self.first(x))
        for layer in self.body:
            x = torch.relu(layer(x))
        logits: torch.Tensor = self.last(x)
        return logits


class Tumours(Workload):
    """Inputs float32 [N, 30], targets int64 [N]: 0 malignant, 1 benign."""

    version = 1

    def __init__(self, width: int = 16) -> None:
        """`width` comes from `[workload.arguments]` in the run file."""
        self._width = width

    def variants(self) -> Mapping[str, Variant]:
        """Return two sizes. The first is the default, and the global model's unless said."""
        return {
            # No names: every parameter of two or more dimensions but the first and the last,
            # which here is body.0.weight.
            "small": Variant(partial(Net, width=self._width, depth=1)),
            "large": Variant(
                partial(Net, width=4 * self._width, depth=2),
                quantized=("body.0.weight", "body.1.weight"),
            ),
        }

    def load(self, spec: DataSpec) -> LocalData:
        """Return this device's samples, scaled by what it sees in its own training part."""
        inputs, targets = load_breast_cancer(return_X_y=True)
        mine = _share(spec, len(targets))
        cut = round(TRAIN * len(mine))
        train, test = mine[:cut], mine[cut:]
        mean, deviation = inputs[train].mean(axis=0), inputs[train].std(axis=0)
        scaled = ((inputs - mean) / deviation).astype(np.float32)
        labels = targets.astype(np.int64)
        return LocalData(Split(scaled[train], labels[train]), Split(scaled[test], labels[test]))

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return for each sample whether it is right, and how much belief the truth was given."""
        belief = outputs.softmax(dim=1).gather(1, targets[:, None])[:, 0]
        return {"accuracy": (outputs.argmax(dim=1) == targets).float(), "belief": belief}


def _share(spec: DataSpec, samples: int) -> npt.NDArray[np.int64]:
    """Return the indices of the samples that a data spec names, in random order."""
    unknown = sorted(set(spec.options) - set(OPTIONS))
    if spec.location != "bundled" or unknown:
        raise DataError(
            f"data {spec.location!r} with options {sorted(spec.options)}; expected "
            f"bundled?clients=NUMBER&client=INDEX, or bundled alone for the whole set"
        )
    try:
        clients = int(spec.options.get("clients", "1"))
        client = int(spec.options.get("client", "0"))
    except ValueError:
        raise DataError(f"clients and client are whole numbers, not {spec.options}") from None
    if not 0 <= client < clients:
        raise DataError(f"client={client} of clients={clients}; expected 0 to {clients - 1}")
    # Seeded, so that all devices agree on who has which sample.
    order = np.random.default_rng(0).permutation(samples)
    return order[client::clients]
