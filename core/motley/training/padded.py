"""One batch of each of K clients, folded into one tensor; short batches are filled up.

Clients' batches differ in size where their data does. The largest sets B; what fills the others up
repeats the client's own first sample, so that it can make nothing worse than the client itself, and
has weight 0. Every mean is over a client's own samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from motley.algorithms.base import ClientContext
from motley.training.accelerator import has_room, resident
from motley.training.augmented import changed, changes
from motley.training.batches import Batches


@dataclass(frozen=True)
class Padded:
    """A batch of each of K clients."""

    inputs: torch.Tensor
    """[K·B, ...], client by client."""
    targets: torch.Tensor
    """[K·B, ...]."""
    weights: torch.Tensor
    """[K, B]: one over the client's samples, 0 for a filler."""
    mask: torch.Tensor | None = None
    """[K, B], 1 and 0; None where nothing is filled up."""

    @property
    def tensors(self) -> Sequence[torch.Tensor]:
        """All that it holds."""
        held = (self.inputs, self.targets, self.weights)
        return held if self.mask is None else (*held, self.mask)

    def copy(self) -> Padded:
        """Return the same in memory of its own."""
        return Padded(*(tensor.clone() for tensor in self.tensors))

    def means(self, values: torch.Tensor) -> torch.Tensor:
        """Return each client's mean, [K], of a value of each sample, [K·B] or [K·B, ...]."""
        each = values.flatten(1).mean(1) if values.dim() > 1 else values
        return (each.view(self.weights.shape) * self.weights).sum(1)


class PaddedBatches:
    """Batches of K clients by iteration."""

    def __init__(self, contexts: Sequence[ClientContext], batches: Sequence[Batches]) -> None:
        self._contexts = contexts
        self._splits = [context.data.train for context in contexts]
        self._batches, self._device = batches, contexts[0].device
        there = [resident(split, self._device) for split in self._splits]
        held = [samples for samples in there if samples is not None]
        self._together: tuple[torch.Tensor, torch.Tensor] | None = None
        """All clients' samples one behind the other, where all are on a GPU."""
        size = sum(inputs.nbytes for inputs, _ in held)
        if len(held) == len(there) and has_room(size, self._device):
            self._together = torch.cat([x for x, _ in held]), torch.cat([y for _, y in held])
        self._starts = np.cumsum([0, *(len(split) for split in self._splits)])

    def __call__(self, iteration: int) -> Padded:
        """Return every client's batch at `iteration`."""
        chosen = [batches(iteration) for batches in self._batches]
        sizes = np.array([len(index) for index in chosen])
        longest = int(sizes.max())
        filled = [np.resize(index, longest) if len(index) < longest else index for index in chosen]
        for index, size in zip(filled, sizes, strict=True):
            index[size:] = index[0]
        present = np.arange(longest) < sizes[:, None]
        weights = (present / sizes[:, None]).astype(np.float32)
        even = bool((sizes == longest).all())
        inputs, targets = self._gathered(filled)
        inputs = self._augmented(iteration, inputs, sizes)
        return Padded(
            inputs=inputs,
            targets=targets,
            weights=torch.from_numpy(weights).to(self._device),
            mask=None if even else torch.from_numpy(present.astype(np.float32)).to(self._device),
        )

    def _gathered(self, chosen: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (inputs, targets) of the chosen samples of each client, folded."""
        if self._together is not None:
            places = [own + start for own, start in zip(chosen, self._starts, strict=False)]
            index = self._joined(places)  # one transfer and two kernels, however many clients
            inputs, targets = self._together
            return inputs.index_select(0, index), targets.index_select(0, index)
        pairs = list(zip(self._splits, chosen, strict=True))
        inputs = self._joined([split.inputs[own] for split, own in pairs])
        return inputs, self._joined([split.targets[own] for split, own in pairs])

    def _augmented(self, number: int, inputs: torch.Tensor, sizes: np.ndarray) -> torch.Tensor:
        """Return all clients' inputs [K·B, ...], each changed as when its client trains alone."""
        longest, drawn = int(sizes.max()), []
        for context, size in zip(self._contexts, sizes.tolist(), strict=True):
            own = changes(context, number, size)
            if own is None:
                return inputs
            drawn.append(np.concatenate([own, own[:1].repeat(longest - size, axis=0)]))
        return changed(self._contexts[0], inputs, np.concatenate(drawn))

    def _joined(self, parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(self._device)
