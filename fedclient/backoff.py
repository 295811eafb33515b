"""How long to wait before the next attempt."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass
class Backoff:
    """Doubling delays with full jitter: uniform in [half, whole] of 0.5, 1, 2 ... up to `most`.

    The jitter keeps a fleet from knocking in step after a server's restart.
    """

    rng: random.Random
    first: float = 0.5
    """Seconds."""
    most: float = 30.0
    failures: int = field(default=0, init=False)

    def next(self) -> float:
        """Count a failure and return the seconds to wait."""
        whole = min(self.most, self.first * 2 ** min(self.failures, 30))
        self.failures += 1
        return self.rng.uniform(whole / 2, whole)

    def reset(self) -> None:
        """Start again at the first delay: something worked."""
        self.failures = 0
