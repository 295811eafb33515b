"""Training samples changed at random each time they are drawn, where a workload says how."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from motley.algorithms.base import ClientContext
from motley.seeding import numpy_generator


def changes(context: ClientContext, number: int, samples: int) -> npt.NDArray[np.int64] | None:
    """Return what is drawn for the samples of a client's batch `number`, [samples, ...].

    A pure function of (seed, client, number), as the batch is. None: samples stay as they are.
    """
    augmentation = context.workload.augmentation
    if augmentation is None:
        return None
    seed, client = context.task.run_seed, context.task.client
    return augmentation.draw(numpy_generator(seed, "augment", number, client), samples)


def augmented(context: ClientContext, number: int, inputs: torch.Tensor) -> torch.Tensor:
    """Return the inputs [B, ...] of a client's batch `number` as they are trained on."""
    return changed(context, inputs, changes(context, number, len(inputs)))


def changed(
    context: ClientContext, inputs: torch.Tensor, drawn: npt.NDArray[np.int64] | None
) -> torch.Tensor:
    """Return inputs [B, ...] changed as was drawn for them, [B, ...]; None: as they are."""
    augmentation = context.workload.augmentation
    if augmentation is None or drawn is None:
        return inputs
    return augmentation.apply(inputs, torch.from_numpy(drawn).to(inputs.device))
