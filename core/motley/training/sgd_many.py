"""Plain local SGD on many clients' models at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from motley.algorithms.base import ClientContext
from motley.errors import TrainingError
from motley.training.batches import Batches
from motley.training.losses import mean_losses
from motley.training.many import ManyModel
from motley.training.padded import PaddedBatches


def local_sgd_many(
    model: ManyModel,
    contexts: Sequence[ClientContext],
    batches: Sequence[Batches],
    *,
    steps: int,
    learning_rate: Callable[[int], float],
    weight_decay: float = 0.0,
    momentum: float = 0.0,
) -> list[float | TrainingError]:
    """Take `steps` steps as `motley.training.sgd.local_sgd` does, for K clients.

    All tasks start at the same iteration of the run. Returns each client's mean loss, or the error
    of one whose loss was not finite; the others are none the worse for it.
    """
    first, workload = contexts[0].plan.iteration, contexts[0].workload
    padded = PaddedBatches(contexts, batches)
    velocity = torch.zeros_like(model.values) if momentum else None
    losses = []
    for step in range(steps):
        batch = padded(first + step)
        model.rows.mask = batch.mask
        outputs = model.module(batch.inputs)
        loss = batch.means(workload.loss(outputs, batch.targets))
        gradient = model.gradient(loss.sum())
        if velocity is None:
            model.descend(gradient, learning_rate(first + step), weight_decay)
        else:
            if weight_decay:
                gradient.add_(model.values, alpha=weight_decay)
            model.descend(velocity.mul_(momentum).add_(gradient), learning_rate(first + step))
        losses.append(loss.detach())
        for context in contexts:
            context.progress((step + 1) / steps)
    return mean_losses(torch.stack(losses, 1), [context.task for context in contexts])
