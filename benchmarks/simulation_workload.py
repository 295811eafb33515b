"""What the simulation benchmark trains: LeNet-size CNNs on random images, made in memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from motley.models.cnn import cnn1
from motley.models.mlp import mlp
from motley.workload import DataSpec, LocalData, Split, Variant, Workload

CLASSES = 10


class RandomImages(Workload):
    """Inputs float32 [N, 1, side, side]; `random?client=3&samples=300&spread=60`."""

    def __init__(self, side: int = 28) -> None:
        self._side = side

    def variants(self) -> Mapping[str, Variant]:
        """Return `cnn1`, and an MLP that costs next to nothing."""
        return {
            "cnn1": Variant(partial(cnn1, channels=1, classes=CLASSES, side=self._side)),
            "tiny": Variant(partial(mlp, inputs=self._side**2, classes=CLASSES, hidden=(4,))),
        }

    def load(self, spec: DataSpec) -> LocalData:
        """Return as many samples as the spec says, some more or fewer by client; 10 for tests."""
        rng = np.random.default_rng(int(spec.options["client"]))
        samples, spread = int(spec.options["samples"]), int(spec.options.get("spread", 0))
        train = self._split(rng, samples + int(rng.integers(-spread, spread + 1)))
        return LocalData(train, self._split(rng, 10))

    def _split(self, rng: np.random.Generator, count: int) -> Split:
        inputs = rng.random((count, 1, self._side, self._side), np.float32)
        return Split(inputs, rng.integers(0, CLASSES, count).astype(np.int64))
