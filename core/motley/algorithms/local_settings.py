"""Settings that all methods with local SGD share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from motley.algorithms.base import ClientContext, Settings

if TYPE_CHECKING:
    from motley.training.batches import Batches


class LocalSettings(Settings):
    """Steps, batches and the learning-rate schedule of local training."""

    local_steps: int = Field(default=10, ge=1)
    """Local iterations of one round (τ)."""
    batch_size: int | None = Field(default=None, ge=1)
    """Samples in a batch; 25 when `batches_per_pass` is not given either."""
    batches_per_pass: int | None = Field(default=None, ge=1)
    """Instead of a size: how many batches one pass over a client's data has."""
    learning_rate: float = Field(default=0.1, gt=0)
    lr_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate after every `iterations_per_epoch` iterations of the run."""
    iterations_per_epoch: int = Field(default=100, ge=1)
    weight_decay: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _one_batch_rule(self) -> LocalSettings:
        if self.batch_size is not None and self.batches_per_pass is not None:
            raise ValueError("give batch_size or batches_per_pass, not both")
        return self

    def epoch(self, iteration: int) -> int:
        """Return the run's epoch (0-based) at an iteration of the run."""
        return iteration // self.iterations_per_epoch

    def rate(self, iteration: int) -> float:
        """Return the learning rate at an iteration of the run."""
        return self.decayed(self.learning_rate, iteration)

    def decayed(self, rate: float, iteration: int) -> float:
        """Return any rate after the decay up to an iteration of the run."""
        return rate * self.lr_decay ** self.epoch(iteration)

    def batches(self, context: ClientContext) -> Batches:
        """Return the client's batches by iteration."""
        from motley.training.batches import Batches

        return Batches(
            len(context.data.train),
            seed=context.task.run_seed,
            client=context.task.client,
            batch_size=0 if self.batches_per_pass else self.batch_size or 25,
            per_pass=self.batches_per_pass or 0,
        )
