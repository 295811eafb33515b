"""QuPeD: Quantized Personalization via Distillation (arXiv 2107.13892, NeurIPS 2021, Algorithm 2).

Every client keeps a personal model x of its own architecture and bit-width, with learned centres c
for each quantized layer; the clients share a full-precision model w. On its data client i minimises

    (1 - λ_p) [ f(x) + f(Q̃_c(x)) ] + λ R(x, c) + λ_p [ KD(x, w) + KD(Q̃_c(x), w) ]

by alternating steps on x, c and its copy of w (lines 9 to 17, `motley.training.alternating`); every
τ iterations the server averages the copies, with equal weights. x and c never leave the device.
In full precision there is no c and no term with Q̃: plain SGD on x, one KD term for w.

| paper | setting |
|---|---|
| τ, λ_p, λ | `local_steps`, `distillation`, `penalty` (λ₀ of a linear schedule) |
| η₁, η₂, η₃ | `learning_rate`, `centre_rate`, `shared_rate` |
| Q̃ | `mode`: "hard" (the limit that the authors ran) or "soft" |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from motley.algorithms.base import Broadcast, ClientContext, Settings, Tensors, Trained
from motley.algorithms.local import AlternatingSettings, Local
from motley.algorithms.personal_model import StartSettings
from motley.errors import TrainingError
from motley.quantize.rules import Rates
from motley.quantize.schedule import Schedule


class QuPeDSettings(AlternatingSettings, StartSettings):
    """Settings of QuPeD: those of Algorithm 1, and what the shared model needs."""

    distillation: float = Field(default=0.25, ge=0, lt=1)
    """λ_p: share of distillation against labels in the personal objective."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the softmax in distillation; the paper has none, which is 1."""
    shared_rate: float = Field(default=1.0, ge=0)
    """η₃. The shared model learns by distillation alone and lags behind at η₁."""

    def rates(self, schedule: Schedule, iteration: int, penalty: float, *, frozen: bool) -> Rates:
        """Return the step sizes of an iteration; `penalty` is λ₀."""
        rates = super().rates(schedule, iteration, penalty, frozen=frozen)
        return replace(rates, shared=schedule.rate(self.shared_rate, iteration))


class QuPeD(Local):
    """Personal models of any size and bit-width that teach and follow one shared model."""

    name: ClassVar[str] = "quped"
    settings_type: ClassVar[type[Settings]] = QuPeDSettings
    has_global_model: ClassVar[bool] = True
    settings: QuPeDSettings

    def train(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Trained:
        """Take the task's steps on x, c and a copy of the broadcast; the copy is the update."""
        from motley.training.distillation import Teacher
        from motley.training.flat import FlatModel

        variant = context.workload.variants()[context.task.global_variant]
        shared = FlatModel.build(variant, broadcast.tensors, context.device)
        teacher = Teacher(shared, self.settings.distillation, self.settings.temperature)
        before, fresh = self.state_of(context, personal), personal is None
        state, metrics = self._steps(context, before, teacher, fresh=fresh)
        return Trained(
            update=shared.tensors(),
            personal=state,
            samples=len(context.data.train),
            metrics=metrics,
        )

    def train_together(
        self,
        contexts: Sequence[ClientContext],
        broadcasts: Sequence[Broadcast],
        personals: Sequence[Tensors | None],
    ) -> list[Trained | TrainingError] | None:
        """Take the task's steps of all clients, each with a copy of its broadcast, in one go."""
        from motley.training.distillation import Teacher
        from motley.training.many import open_many
        from motley.training.steps import trained_of_all

        received = [broadcast.tensors for broadcast in broadcasts]
        shared = open_many(contexts, contexts[0].task.global_variant, received)
        if shared is None:
            return None
        teacher = Teacher(shared, self.settings.distillation, self.settings.temperature)
        states = [self.state_of(c, p) for c, p in zip(contexts, personals, strict=True)]
        found = self._steps_together(contexts, states, teacher, fresh=personals[0] is None)
        if found is None:
            return None
        new, losses = found
        return trained_of_all(contexts, losses, shared.tensors_of_all(), new)
