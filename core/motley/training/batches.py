"""Mini-batches as a pure function of (seed, client, iteration).

A client that was not sampled for ten rounds, or restarted in the middle of one, draws the same
batch at iteration t as one that never stopped.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from motley.errors import DataError
from motley.seeding import numpy_generator


class Batches:
    """Batches of one client's training set, by iteration.

    Each pass over the set is a fresh permutation cut into equal parts. Either `batch_size` sets
    the parts' size, or `per_pass` their number (QuPeD section 5 fixes 60 a pass for clients of
    different size, so that their batches differ by one).
    """

    def __init__(
        self, samples: int, *, seed: int, client: str, batch_size: int = 0, per_pass: int = 0
    ) -> None:
        if samples < 1:
            raise DataError(f"client {client!r} has no training samples; at least 1 is needed")
        if (batch_size > 0) == (per_pass > 0):
            raise ValueError("give batch_size or per_pass, not both")
        self._samples, self._seed, self._client = samples, seed, client
        self.per_pass = min(per_pass, samples) if per_pass else -(-samples // batch_size)
        self._pass = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def __call__(self, iteration: int) -> npt.NDArray[np.int64]:
        """Return the sample indices [B] of the batch at `iteration` (0-based)."""
        number, position = divmod(iteration, self.per_pass)
        if number != self._pass:
            rng = numpy_generator(self._seed, "batches", number, self._client)
            self._order, self._pass = rng.permutation(self._samples), number
        size, longer = divmod(self._samples, self.per_pass)
        start = position * size + min(position, longer)  # the first parts are one longer
        return self._order[start : start + size + (position < longer)]
