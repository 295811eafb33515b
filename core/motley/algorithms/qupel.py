"""QuPeL: quantized personal models that an l2 penalty ties to one shared model.

What QuPeD is compared with in its own paper (arXiv 2107.13892, section 5 and footnote 5): instead
of distilling, every client's x, of any bit-width, stays near the shared w of the same shape. On its
data client i minimises

    f(x) + f(Q̃_c(x)) + λ R(x, c) + (λ_p / 2) ( ||x - w||² + ||Q̃_c(x) - w||² )

by QuPeD's alternating steps, where the step on w is w ← w - η₃ λ_p [ (w - x) + (w - Q_c(x)) ], with
Q_c(x) = x outside of the quantized layers. Every τ iterations the server averages the copies of w.
The paper's appendix D, which spells the method out, could not be had; in the released code the
penalty is on the centres' step alone (`ties = "centres"`).

| paper | setting |
|---|---|
| τ, λ_p, λ | `local_steps`, `proximity`, `penalty` (λ₀ of a linear schedule) |
| η₁, η₂, η₃ | `learning_rate`, `centre_rate`, `shared_rate` |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field, model_validator

from motley.algorithms.base import Broadcast, ClientContext, Settings, Tensors, Trained
from motley.algorithms.local import AlternatingSettings, Local
from motley.errors import TrainingError
from motley.quantize.rules import Rates, Ties
from motley.quantize.schedule import Schedule


class QuPeLSettings(AlternatingSettings):
    """Settings of QuPeL: those of Algorithm 1, and what the shared model needs."""

    proximity: float = Field(default=0.1, ge=0)
    """λ_p: weight of the l2 penalty. The loss on labels keeps its full weight."""
    shared_rate: float = Field(default=1.0, ge=0)
    """η₃."""
    ties: Ties = "both"
    """What the penalty ties to w: x and Q_c(x), or one of them ("weights", "centres")."""

    @model_validator(mode="after")
    def _steps_do_not_overshoot(self) -> QuPeLSettings:
        if self.learning_rate * self.proximity >= 1 or 2 * self.shared_rate * self.proximity > 1:
            raise ValueError(
                f"learning_rate * proximity is {self.learning_rate * self.proximity:.3g} and "
                f"2 * shared_rate * proximity is {2 * self.shared_rate * self.proximity:.3g}; "
                f"expected below 1 and at most 1, as the l2 penalty overshoots beyond: "
                f"lower proximity or the rate"
            )
        return self

    def rates(self, schedule: Schedule, iteration: int, penalty: float, *, frozen: bool) -> Rates:
        """Return the step sizes of an iteration; `penalty` is λ₀."""
        rates = super().rates(schedule, iteration, penalty, frozen=frozen)
        return replace(rates, shared=schedule.rate(self.shared_rate, iteration))


class QuPeL(Local):
    """Personal models of any bit-width, tied to a shared model of the same shape."""

    name: ClassVar[str] = "qupel"
    settings_type: ClassVar[type[Settings]] = QuPeLSettings
    has_global_model: ClassVar[bool] = True
    tiers_choose_models: ClassVar[bool] = False
    tiers_choose_personal_bits: ClassVar[bool] = True
    settings: QuPeLSettings

    def train(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Trained:
        """Take the task's steps on x, c and a copy of the broadcast; the copy is the update.

        A client's first x is the broadcast: models that start apart are not averaged by an l2
        penalty but ruined.
        """
        from motley.training.flat import FlatModel
        from motley.training.proximity import Anchor

        settings = self.settings
        if personal is None:
            state = self._fresh(context, broadcast.tensors)
        else:
            state = self.state_of(context, personal)
        variant = context.workload.variants()[context.task.global_variant]
        first = [key.partition("/")[2] for key in state if key.startswith("centres/")]
        shared = FlatModel.build(variant, broadcast.tensors, context.device, first)
        anchor = Anchor(shared, settings.proximity, settings.ties)
        state, metrics = self._steps(context, state, anchor=anchor, fresh=personal is None)
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
        """Take the task's steps of all clients in one go."""
        from motley.training.many import open_many
        from motley.training.proximity import Anchor
        from motley.training.steps import trained_of_all

        settings = self.settings
        states = [
            self._fresh(c, b.tensors) if p is None else self.state_of(c, p)
            for c, b, p in zip(contexts, broadcasts, personals, strict=True)
        ]
        first = [key.partition("/")[2] for key in states[0] if key.startswith("centres/")]
        received = [broadcast.tensors for broadcast in broadcasts]
        shared = open_many(contexts, contexts[0].task.global_variant, received, first)
        if shared is None:
            return None
        anchor = Anchor(shared, settings.proximity, settings.ties)
        fresh = personals[0] is None
        found = self._steps_together(contexts, states, anchor=anchor, fresh=fresh)
        if found is None:
            return None
        new, losses = found
        return trained_of_all(contexts, losses, shared.tensors_of_all(), new)
