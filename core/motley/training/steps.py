"""The frame of one task: its iterations, their batches, their mean loss; for one client or many.

A step is written once: it asks a feed for a batch, takes `batch.means` of the losses ([] for one
client, [K] for many), and the gradient of their sum, which for many clients is each one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from motley.algorithms.base import ClientContext, Tensors, Trained
from motley.errors import TrainingError
from motley.training.accelerator import samples_on
from motley.training.augmented import augmented
from motley.training.batches import Batches
from motley.training.flat import FlatModel
from motley.training.losses import mean_loss, mean_losses
from motley.training.many import ManyModel
from motley.training.padded import Padded, PaddedBatches
from motley.training.replay import Drawn


class Batch(NamedTuple):
    """A batch of one client."""

    inputs: torch.Tensor
    targets: torch.Tensor

    @property
    def tensors(self) -> Sequence[torch.Tensor]:
        """Inputs and targets."""
        return self

    def means(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of a value of each sample, a scalar."""
        return values.mean()

    def copy(self) -> Batch:
        """Return the same in memory of its own."""
        return Batch(*(tensor.clone() for tensor in self))


class Feed:
    """A client's training batches by number, on its device."""

    def __init__(self, context: ClientContext, batches: Batches) -> None:
        self._inputs, self._targets = samples_on(context.data.train, context.device)
        self._context, self._batches, self.device = context, batches, context.device
        self.held: dict[int, Drawn] = {}

    def __call__(self, number: int) -> Drawn:
        """Return batch `number`, 0-based."""
        return self.held[number] if number in self.held else self.draw(number)

    def draw(self, number: int) -> Batch:
        """Return batch `number`, from the samples."""
        index = torch.from_numpy(self._batches(number)).to(self.device)
        inputs = augmented(self._context, number, self._inputs[index])
        return Batch(inputs, self._targets[index])


class ManyFeed:
    """The training batches of many clients by number, for models that run on them."""

    def __init__(
        self,
        contexts: Sequence[ClientContext],
        batches: Sequence[Batches],
        models: Sequence[FlatModel],
    ) -> None:
        self._padded = PaddedBatches(contexts, batches)
        self._models = [model for model in models if isinstance(model, ManyModel)]
        self.device = contexts[0].device
        self.held: dict[int, Drawn] = {}

    def __call__(self, number: int) -> Drawn:
        """Return every client's batch `number`; the models leave its fillers out from here on."""
        batch = self.held[number] if number in self.held else self.draw(number)
        assert isinstance(batch, Padded)
        for model in self._models:
            model.rows.mask = batch.mask
        return batch

    def draw(self, number: int) -> Padded:
        """Return every client's batch `number`, from their samples."""
        return self._padded(number)


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


def take_steps_together(
    contexts: Sequence[ClientContext], steps: int, step: Callable[[int], torch.Tensor]
) -> list[float | TrainingError]:
    """Do as `take_steps` for clients with equal plans; `step` returns each one's loss, [K].

    Returns each client's mean loss, or the error of one whose loss was not finite.
    """
    losses = []
    for done in range(steps):
        losses.append(step(contexts[0].plan.iteration + done))
        for context in contexts:
            context.progress((done + 1) / steps)
    return mean_losses(torch.stack(losses, 1), [context.task for context in contexts])


def trained_of_all(
    contexts: Sequence[ClientContext],
    losses: Sequence[float | TrainingError],
    updates: Sequence[Tensors] | None,
    personals: Sequence[Tensors] | None = None,
) -> list[Trained | TrainingError]:
    """Return what came of clients that trained together: their errors, or what they send and keep.

    `updates` and `personals`: each client's, in order; None where a method has none.
    """
    return [
        loss
        if isinstance(loss, TrainingError)
        else Trained(
            update=updates[number] if updates is not None else {},
            personal=personals[number] if personals is not None else None,
            samples=len(context.data.train),
            metrics={"loss": loss},
        )
        for number, (context, loss) in enumerate(zip(contexts, losses, strict=True))
    ]
