"""pFedMe: personal models by Moreau envelopes.

T Dinh, Tran and Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020,
arXiv 2006.08848, algorithm 1. Client i's part of the global objective is the envelope of its loss,

    F_i(w) = min_θ  f_i(θ) + (λ / 2) ||θ - w||²

In each of τ local steps it takes one minibatch, nears the personal model θ by K gradient steps on
that batch, and moves its copy of w towards it: w_i ← w_i - η λ (w_i - θ). θ goes on from the step
before; a round begins with θ = w_i = w. The server sets w ← (1 - β) w + β mean_i w_i.

| paper | setting |
|---|---|
| R, K | `local_steps`, `inner_steps` |
| λ, β | `proximity`, `server_rate` |
| η | `shared_rate` |
| step size of the inner problem | `learning_rate` |

θ is what is used in the end, kept apart from w_i. Clients that are not sampled do not train.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from motley.algorithms.base import Broadcast, ClientContext, FloatArray, Settings, Tensors, Trained
from motley.algorithms.local_settings import LocalSettings
from motley.algorithms.personal_model import PersonalModel
from motley.errors import TrainingError

if TYPE_CHECKING:
    import torch

    from motley.training.flat import FlatModel
    from motley.training.replay import Step
    from motley.training.steps import Feed, ManyFeed
    from motley.workload import Workload


class PFedMeSettings(LocalSettings):
    """Settings of pFedMe; `weight_decay` is the released code's μ, on θ alone."""

    inner_steps: int = Field(default=5, ge=1)
    """K: gradient steps on the personal model for each minibatch."""
    proximity: float = Field(default=15.0, gt=0)
    """λ: how near the personal model stays to the shared one."""
    shared_rate: float = Field(default=0.01, ge=0)
    """η, of the client's copy of the shared model."""
    server_rate: float = Field(default=1.0, gt=0)
    """β: how far the server goes from the old model to the mean of the new ones."""

    @model_validator(mode="after")
    def _steps_do_not_overshoot(self) -> PFedMeSettings:
        if self.learning_rate * self.proximity >= 2 or self.shared_rate * self.proximity > 1:
            raise ValueError(
                f"learning_rate * proximity is {self.learning_rate * self.proximity:.3g} and "
                f"shared_rate * proximity is {self.shared_rate * self.proximity:.3g}; expected "
                f"below 2 and at most 1, as the steps diverge beyond: lower proximity or the rate"
            )
        return self


class PFedMe(PersonalModel):
    """Personal models near a shared one, which follows them."""

    name: ClassVar[str] = "pfedme"
    settings_type: ClassVar[type[Settings]] = PFedMeSettings
    settings: PFedMeSettings

    def finish_tile(self, state: FloatArray, reduced: FloatArray) -> FloatArray:
        """Return (1 - β) w + β mean."""
        if self.settings.server_rate == 1:
            return reduced
        new: FloatArray = state + (reduced - state) * state.dtype.type(self.settings.server_rate)
        return new

    def train(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Trained:
        """Take τ local steps from the broadcast; w_i is the update, θ the personal model."""
        from motley.training.flat import FlatModel
        from motley.training.steps import Feed, take_steps

        settings, variant = self.settings, context.workload.variants()[context.plan.variant]
        theta = FlatModel.build(variant, broadcast.tensors, context.device)
        shared = FlatModel.build(variant, broadcast.tensors, context.device)
        feed = Feed(context, settings.batches(context))
        step = self._step(context.workload, theta, shared, feed)
        loss = take_steps(context, settings.local_steps, step)
        # The copy of w never sees data: its layers' statistics are the personal model's.
        shared.adopt_buffers(theta)
        return self._trained(context, shared.tensors(), theta.tensors(), loss)

    trains_together: ClassVar[bool] = True

    def train_together(
        self,
        contexts: Sequence[ClientContext],
        broadcasts: Sequence[Broadcast],
        personals: Sequence[Tensors | None],
    ) -> list[Trained | TrainingError] | None:
        """Take the τ local steps of all clients in one go."""
        from motley.training.many import open_many
        from motley.training.steps import ManyFeed, take_steps_together

        settings, first = self.settings, contexts[0]
        states = [broadcast.tensors for broadcast in broadcasts]
        theta = open_many(contexts, first.plan.variant, states)
        shared = open_many(contexts, first.plan.variant, states)
        if theta is None or shared is None:
            return None
        feed = ManyFeed(contexts, [settings.batches(c) for c in contexts], [theta])
        step = self._step(first.workload, theta, shared, feed)
        losses = take_steps_together(contexts, settings.local_steps, step)
        shared.adopt_buffers(theta)
        return [
            loss
            if isinstance(loss, TrainingError)
            else self._trained(context, update, personal, loss)
            for context, update, personal, loss in zip(
                contexts,
                shared.tensors_of_all(),
                theta.tensors_of_all(),
                losses,
                strict=True,
            )
        ]

    def _step(
        self, workload: Workload, theta: FlatModel, shared: FlatModel, feed: Feed | ManyFeed
    ) -> Step:
        """Return one local step, of one client or of many, as a function of the iteration."""
        from motley.training.proximity import add_pull, step_towards
        from motley.training.replay import repeated

        settings = self.settings

        def step(iteration: int) -> torch.Tensor:
            batch = feed(iteration)
            for _ in range(settings.inner_steps):
                loss = batch.means(workload.loss(theta.module(batch.inputs), batch.targets))
                gradient = theta.gradient(loss.sum())
                add_pull(gradient, theta.values, shared.values, settings.proximity)
                theta.descend(gradient, settings.rate(iteration), settings.weight_decay)
            rate = settings.decayed(settings.shared_rate, iteration)
            step_towards(shared.values, [theta.values], rate, settings.proximity)
            return loss.detach()

        return repeated(step, feed, settings.epoch)

    def _trained(
        self, context: ClientContext, update: Tensors, personal: Tensors, loss: float
    ) -> Trained:
        from motley.training.personal import full_precision_state

        return Trained(
            update=update,
            personal=full_precision_state(personal),
            samples=len(context.data.train),
            metrics={"loss": loss},
        )

    def state_of(self, context: ClientContext, personal: Tensors | None) -> Tensors:
        """Return θ as it was left; for a client that never trained, as the seed draws it."""
        from motley.training.personal import full_precision_state

        return full_precision_state(self.first_model(context)) if personal is None else personal
