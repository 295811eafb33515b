"""Per-FedAvg, first order: a shared model that one or a few gradient steps make a personal one.

Fallah, Mokhtari and Ozdaglar, "Personalized Federated Learning with Theoretical Guarantees: A
Model-Agnostic Meta-Learning Approach", NeurIPS 2020, arXiv 2002.07948, algorithm 1 with the Hessian
left out (FO). A local step, on two batches D and D':

    w' = w - α ∇f(w; D)         w ← w - β ∇f(w'; D')

The server takes the plain mean. What a client uses is the model after it adapted: w' from the
newest global model, by `adaptation_steps` steps on its *training* batches; the released code that
baselines are mostly run with adapts on test batches, with their labels.

| paper | setting |
|---|---|
| τ | `local_steps` |
| α, β | `adaptation_rate`, `learning_rate` |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from motley.algorithms.base import (
    Algorithm,
    Broadcast,
    ClientContext,
    Finished,
    Settings,
    Tensors,
    Trained,
)
from motley.algorithms.local_settings import LocalSettings
from motley.errors import TrainingError
from motley.wire import encode_dense

if TYPE_CHECKING:
    import torch

    from motley.training.flat import FlatModel
    from motley.training.replay import Step
    from motley.training.steps import Feed, ManyFeed
    from motley.workload import Workload


class PerFedAvgSettings(LocalSettings):
    """Settings of Per-FedAvg; `learning_rate` is β, and `weight_decay` enters the step by it."""

    adaptation_rate: float = Field(default=0.03, gt=0)
    """α: a part of the objective, so that it does not decay."""
    adaptation_steps: int = Field(default=1, ge=1)
    """Steps by which a client makes the global model its own, to be tested or kept."""


class PerFedAvg(Algorithm):
    """One global model, trained to be adapted."""

    name: ClassVar[str] = "perfedavg"
    settings_type: ClassVar[type[Settings]] = PerFedAvgSettings
    personal_from_global: ClassVar[bool] = True
    settings: PerFedAvgSettings

    @property
    def local_steps(self) -> int:
        """Local iterations of one round, τ."""
        return self.settings.local_steps

    def train(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Trained:
        """Take τ steps from the broadcast, two batches each, and return the model's values."""
        from motley.training.flat import FlatModel
        from motley.training.steps import Feed, take_steps

        settings, workload = self.settings, context.workload
        variant = workload.variants()[context.task.global_variant]
        model = FlatModel.build(variant, broadcast.tensors, context.device)
        feed = Feed(context, settings.batches(context))
        loss = take_steps(context, settings.local_steps, self._step(workload, model, feed))
        return Trained(
            update=model.tensors(), samples=len(context.data.train), metrics={"loss": loss}
        )

    trains_together: ClassVar[bool] = True

    def train_together(
        self,
        contexts: Sequence[ClientContext],
        broadcasts: Sequence[Broadcast],
        personals: Sequence[Tensors | None],
    ) -> list[Trained | TrainingError] | None:
        """Take the τ steps of all clients in one go."""
        from motley.training.many import open_many
        from motley.training.steps import ManyFeed, take_steps_together, trained_of_all

        settings, first = self.settings, contexts[0]
        states = [broadcast.tensors for broadcast in broadcasts]
        model = open_many(contexts, first.task.global_variant, states)
        if model is None:
            return None
        feed = ManyFeed(contexts, [settings.batches(c) for c in contexts], [model])
        step = self._step(first.workload, model, feed)
        losses = take_steps_together(contexts, settings.local_steps, step)
        return trained_of_all(contexts, losses, model.tensors_of_all())

    def _step(self, workload: Workload, model: FlatModel, feed: Feed | ManyFeed) -> Step:
        """Return one local step, of one client or of many, as a function of the iteration."""
        from motley.training.replay import repeated

        settings = self.settings

        def step(iteration: int) -> torch.Tensor:
            start = model.values.clone()
            batch = feed(2 * iteration)
            first = batch.means(workload.loss(model.module(batch.inputs), batch.targets))
            model.descend(model.gradient(first.sum()), settings.adaptation_rate)
            batch = feed(2 * iteration + 1)
            second = batch.means(workload.loss(model.module(batch.inputs), batch.targets))
            gradient = model.gradient(second.sum())
            model.values.copy_(start)
            model.descend(gradient, settings.rate(iteration), settings.weight_decay)
            return second.detach()

        return repeated(step, feed, settings.epoch, lambda number: (2 * number, 2 * number + 1))

    def model_for(
        self, context: ClientContext, subject: str, broadcast: Broadcast, personal: Tensors | None
    ) -> tuple[str, Tensors]:
        """Return the broadcast for "global", else what the client makes of it."""
        tensors = broadcast.tensors if subject == "global" else self._adapted(context, broadcast)
        return context.task.global_variant, tensors

    def finish(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Finished:
        """Return the global model as this client adapted it, in full precision."""
        adapted = self._adapted(context, broadcast)
        model = {name: encode_dense(values) for name, values in adapted.items()}
        return Finished(variant=context.task.global_variant, model=model)

    def _adapted(self, context: ClientContext, broadcast: Broadcast) -> Tensors:
        """Return the model after the client's first training batches, the same in every round."""
        from motley.training.flat import FlatModel
        from motley.training.steps import Feed

        settings, workload = self.settings, context.workload
        variant = workload.variants()[context.task.global_variant]
        model = FlatModel.build(variant, broadcast.tensors, context.device)
        feed = Feed(context, settings.batches(context))
        for number in range(settings.adaptation_steps):
            batch = feed(number)
            loss = batch.means(workload.loss(model.module(batch.inputs), batch.targets))
            model.descend(model.gradient(loss), settings.adaptation_rate)
        return model.tensors()
