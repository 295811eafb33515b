"""How rates and the penalty change over a run, as functions of the run's iteration.

An epoch e is `iterations_per_epoch` iterations of the *run*, whether or not a client took part in
them, so that clients sampled rarely stay in step with the others. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Decay of the learning rates, growth of the penalty, start of fine-tuning."""

    iterations_per_epoch: int
    decay: float = 1.0
    """Factor on every learning rate after each epoch."""
    freeze_at: int | None = None
    """Iteration at which fine-tuning starts: cells are frozen from here on. None: never."""

    def epoch(self, iteration: int) -> int:
        """Return the epoch of an iteration; both are 0-based."""
        return iteration // self.iterations_per_epoch

    def rate(self, initial: float, iteration: int) -> float:
        """Return a learning rate at an iteration."""
        return float(initial * self.decay ** self.epoch(iteration))

    def penalty(self, initial: float, iteration: int, *, frozen: bool | None = None) -> float:
        """Return λ at an iteration: λ₀ (e + 1), or 0 in fine-tuning.

        `frozen`: whether a client is in it, who may have come late; default: as the run is.
        """
        tuning = self.frozen(iteration) if frozen is None else frozen
        return 0.0 if tuning else initial * (self.epoch(iteration) + 1)

    def frozen(self, iteration: int) -> bool:
        """Tell whether an iteration belongs to fine-tuning."""
        return self.freeze_at is not None and iteration >= self.freeze_at

    def practical_penalty(self, distance: float, learning_rate: float, iterations: int) -> float:
        """Return the λ₀ under which the penalty can just carry weights to their centres.

        A step pulls a weight by at most η₁λ/2, so over the iterations before fine-tuning by
        Σ_t η₁(t) λ₀ (e(t) + 1) / 2. That is set equal to `distance`, the mean of |x - Q(x)| over
        the quantized weights at the start: λ₀ = 2 · distance / Σ_t η₁(t) (e(t) + 1).

        >>> epochs = Schedule(iterations_per_epoch=40, decay=0.99)
        >>> round(epochs.practical_penalty(0.024, 0.1, 8000), 8)
        2.01e-06
        """
        end = iterations if self.freeze_at is None else min(iterations, self.freeze_at)
        pull = 0.0
        for start in range(0, end, self.iterations_per_epoch):
            length = min(self.iterations_per_epoch, end - start)
            pull += length * self.rate(learning_rate, start) * (self.epoch(start) + 1)
        return 2 * distance / pull if pull else 0.0
