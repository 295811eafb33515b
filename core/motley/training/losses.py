"""The losses of one task's iterations."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from motley.errors import TrainingError
from motley.task import TaskSpec


def mean_loss(losses: Sequence[torch.Tensor], task: TaskSpec) -> float:
    """Return the mean of a task's losses, one scalar an iteration, read from the device at once.

    Raises:
        TrainingError: a loss is NaN or infinite; names the client and the first such iteration.
    """
    values = torch.stack([loss.double() for loss in losses]).cpu()
    finite = values.isfinite()
    if not finite.all():
        place = int(finite.logical_not().nonzero()[0])
        raise TrainingError(
            f"the loss of client {task.client!r} became {values[place].item()} at iteration "
            f"{task.plan.iteration + place} (round {task.round} of run {task.run_name}); expected "
            "a finite number: lower the learning rate of this client's tier"
        )
    return float(values.mean())
