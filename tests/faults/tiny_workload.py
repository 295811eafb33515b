"""A workload that trains in milliseconds: points around four centres, two sizes of one MLP.

A data spec is `tiny?client=2`; a client's samples follow from its number alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from motley.workload import DataSpec, LocalData, Split, Variant, Workload

if TYPE_CHECKING:
    from torch import nn

FEATURES, CLASSES = 16, 4


class Tiny(Workload):
    """Inputs float32 [N, 16], targets int64 [N]."""

    def variants(self) -> Mapping[str, Variant]:
        return {"small": Variant(partial(_mlp, 96)), "large": Variant(partial(_mlp, 128))}

    def load(self, spec: DataSpec) -> LocalData:
        client = int(spec.options["client"])
        rng = np.random.default_rng(1000 + client)
        count = 60 + 5 * client
        centres = np.random.default_rng(7).normal(size=(CLASSES, FEATURES))
        targets = rng.integers(0, CLASSES, count)
        inputs = centres[targets] + rng.normal(scale=1.5, size=(count, FEATURES))
        inputs = inputs.astype(np.float32)
        cut = count - 20
        return LocalData(Split(inputs[:cut], targets[:cut]), Split(inputs[cut:], targets[cut:]))


def _mlp(hidden: int) -> nn.Module:
    from torch import nn

    return nn.Sequential(
        nn.Linear(FEATURES, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, CLASSES),
    )
