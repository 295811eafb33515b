"""The identity workload: a client sends back what it got, touched in one float in every MiB.

Arrays and numpy alone: neither daemon nor training process imports torch for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from motley.workload import ArrayModel, ArrayWorkload, DataSpec, LocalData, Split, Variant

TENSORS = 20
FLOATS_IN_A_MIB = 2**18
TOUCH = np.float32(1e-3)
Tensors = Mapping[str, npt.NDArray[np.generic]]


def shapes(megabytes: float) -> dict[str, tuple[int, ...]]:
    """Return the model: 20 float32 tensors of equal size, `megabytes` · 10⁶ bytes in all."""
    size = int(megabytes * 1e6 / 4 / TENSORS)
    return {f"layer{number:02d}.weight": (size,) for number in range(TENSORS)}


def touch(values: npt.NDArray[np.generic]) -> None:
    """Change one float in every MiB."""
    values.reshape(-1)[::FLOATS_IN_A_MIB] += TOUCH


class Identity(ArrayWorkload):
    """A model of a given size, and two samples that nobody looks at."""

    def __init__(self, megabytes: float) -> None:
        self._shapes = shapes(megabytes)

    def variants(self) -> Mapping[str, Variant]:
        return {"arrays": Variant(arrays=ArrayModel(self._shapes, self._draw))}

    def _draw(self, rng: np.random.Generator) -> dict[str, npt.NDArray[np.float32]]:
        return {
            name: rng.standard_normal(shape, dtype=np.float32)
            for name, shape in self._shapes.items()
        }

    def load(self, spec: DataSpec) -> LocalData:
        split = Split(np.zeros((1, 1), np.float32), np.zeros(1, np.int64))
        return LocalData(split, split)

    def fit(
        self,
        tensors: dict[str, npt.NDArray[np.generic]],
        samples: Split,
        batches: Iterable[npt.NDArray[np.int64]],
        learning_rate: float,
    ) -> float:
        for _ in batches:
            for values in tensors.values():
                touch(values)
        return 0.0

    def score(self, tensors: Tensors, samples: Split) -> Mapping[str, float]:
        return {"tensors": float(len(tensors))}
