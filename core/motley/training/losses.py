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
    found = mean_losses(torch.stack([loss.double() for loss in losses]).unsqueeze(0), [task])[0]
    if isinstance(found, TrainingError):
        raise found
    return found


def mean_losses(losses: torch.Tensor, tasks: Sequence[TaskSpec]) -> list[float | TrainingError]:
    """Return the mean of each task's losses [K, iterations], or the error of one that diverged."""
    found: list[float | TrainingError] = []
    for values, task in zip(losses.double().cpu(), tasks, strict=True):
        finite = values.isfinite()
        if finite.all():
            found.append(float(values.mean()))
            continue
        place = int(finite.logical_not().nonzero()[0])
        found.append(
            TrainingError(
                f"the loss of client {task.client!r} became {values[place].item()} at iteration "
                f"{task.plan.iteration + place} (round {task.round} of run {task.run_name}); "
                "expected a finite number: lower the learning rate of this client's tier"
            )
        )
    return found
