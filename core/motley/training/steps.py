"""The frame of one task: its iterations, their batches, their mean loss."""

from __future__ import annotations

from collections.abc import Callable

import torch

from motley.algorithms.base import ClientContext
from motley.training.batches import Batches
from motley.training.evaluation import to_torch
from motley.training.losses import mean_loss

Batch = tuple[torch.Tensor, torch.Tensor]


class Feed:
    """A client's training batches by number, on its device."""

    def __init__(self, context: ClientContext, batches: Batches) -> None:
        self._inputs, self._targets = to_torch(context.data.train, context.device)
        self._batches, self._device = batches, context.device

    def __call__(self, number: int) -> Batch:
        """Return (inputs [B, ...], targets [B, ...]) of batch `number`, 0-based."""
        index = torch.from_numpy(self._batches(number)).to(self._device)
        return self._inputs[index], self._targets[index]


def take_steps(context: ClientContext, steps: int, step: Callable[[int], torch.Tensor]) -> float:
    """Call `step` with each iteration of the task; return the mean of the losses it returns.

    Raises:
        TrainingError: a loss is not finite.
    """
    losses = []
    for done in range(steps):
        losses.append(step(context.plan.iteration + done))
        context.progress((done + 1) / steps)
    return mean_loss(losses, context.task)
