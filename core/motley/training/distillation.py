"""Knowledge distillation between a shared model and a personal one (QuPeD, section 2.2).

KD(x, w) = KL(s(w) ‖ s(x)): the shared model w is the teacher and the *first* argument. A personal
model learns from it as usual; w itself takes the "reverse" step through the first argument.

| paper | here |
|---|---|
| s(w), s(x) | softmax over dimension 1 of outputs [B, C, ...] divided by the temperature T |
| KL | mean over the batch; times T², so that gradients keep their size when T changes |
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from motley.training.flat import FlatModel
from motley.training.padded import Padded
from motley.workload import Workload


class Signal:
    """What a teacher says about one batch."""

    def __init__(
        self, outputs: torch.Tensor, temperature: float = 1.0, batch: Padded | None = None
    ) -> None:
        """Take the teacher's outputs [B, C, ...]; students' gradients do not flow into them.

        With a `batch` they are those of K clients' teachers, [K·B, C, ...], and so is all below.
        """
        self.temperature, self._batch = temperature, batch
        with torch.no_grad():
            self._log = _log_probabilities(outputs, temperature)
            self._probabilities = self._log.exp()
            self._count = outputs.numel() // outputs.shape[1]
            self._negentropy = self._mean(self._probabilities * self._log)

    def divergence(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return T² KL(teacher ‖ student) for a student's outputs, a scalar or [K] in the graph."""
        log = _log_probabilities(outputs, self.temperature)
        cross = self._mean(self._probabilities * log)
        return (self._negentropy - cross) * self.temperature**2

    def teacher_gradient(self, students: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the gradient of Σ T² KL in the teacher's outputs, [B, C, ...].

        In closed form, with p = s(w), for one student and T = 1:
        ∂KL/∂z_k = p_k (log p_k - log s(x)_k - KL).
        """
        ratio = len(students) * self._log
        for outputs in students:
            ratio = ratio - _log_probabilities(outputs, self.temperature)
        weighted = self._probabilities * ratio
        gradient = weighted - self._probabilities * weighted.sum(1, keepdim=True)
        if self._batch is None:
            return gradient * (self.temperature / self._count)
        share = self._batch.weights.reshape(-1, *[1] * (gradient.dim() - 1))
        places = self._count / share.numel()
        return gradient * (share * (self.temperature / places))

    def _mean(self, terms: torch.Tensor) -> torch.Tensor:
        """Return the mean over samples of the sum over dimension 1."""
        if self._batch is None:
            return terms.sum() / self._count
        return self._batch.means(terms.sum(1))


class Objective:
    """(1 - λ_p) loss + λ_p KD of one batch, as a function of a model's outputs."""

    def __init__(
        self,
        workload: Workload,
        targets: torch.Tensor,
        signal: Signal | None = None,
        share: float = 0.0,
        batch: Padded | None = None,
    ) -> None:
        """Take a batch's targets [B, ...]; without a signal the loss alone counts, in full.

        With a `batch` of K clients targets are [K·B, ...], and each has an objective of its own.
        """
        self._workload, self._targets, self._batch = workload, targets, batch
        self._signal, self._share = signal, share

    def __call__(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the objective for a model's outputs, a scalar or [K] in the graph."""
        losses = self._workload.loss(outputs, self._targets)
        loss = losses.mean() if self._batch is None else self._batch.means(losses)
        if self._signal is None:
            return loss
        return (1 - self._share) * loss + self._share * self._signal.divergence(outputs)


class Teacher:
    """A client's copy of the shared model, and how far the personal model listens to it."""

    def __init__(self, model: FlatModel, share: float, temperature: float = 1.0) -> None:
        """Take the shared model, λ_p as `share`, and T."""
        self.model, self.share, self.temperature = model, share, temperature

    def look(
        self, inputs: torch.Tensor, batch: Padded | None = None
    ) -> tuple[torch.Tensor, Signal]:
        """Return the model's outputs with their graph, and what they tell the students."""
        outputs: torch.Tensor = self.model.module(inputs)
        return outputs, Signal(outputs, self.temperature, batch)

    def learn(
        self,
        outputs: torch.Tensor,
        signal: Signal,
        students: Sequence[torch.Tensor],
        rate: float,
    ) -> None:
        """Step the shared model towards its students (QuPeD, Algorithm 2, line 14).

        No loss on labels and no weight decay: w moves by -η₃ λ_p Σ ∂KD/∂w alone.
        """
        gradient = self.model.gradient(outputs, signal.teacher_gradient(students))
        self.model.descend(gradient, rate * self.share)


def _log_probabilities(outputs: torch.Tensor, temperature: float) -> torch.Tensor:
    scaled = outputs if temperature == 1.0 else outputs / temperature
    return torch.log_softmax(scaled, dim=1)
