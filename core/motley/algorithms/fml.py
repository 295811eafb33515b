"""Federated Mutual Learning: a private model and a shared one teach each other.

Shen et al., "Federated Mutual Learning", arXiv 2006.16765. Every client keeps a private model x of
any architecture, and gets a copy w of the shared "meme" model in each round. Both step at once,
from the outputs on the same batch, each with the other's as fixed targets:

    L_x = α CE(x) + (1 - α) KL(s(w) ‖ s(x))        L_w = β CE(w) + (1 - β) KL(s(x) ‖ s(w))

The server takes the plain mean of the memes; a client uses x. QuPeD in full precision differs in
three points: there w gets no label loss, its divergence is the other way round, and it steps after
x.

| paper | setting |
|---|---|
| α, β | `label_share`, `shared_label_share` |
| learning rates of x and w | `learning_rate`, `shared_rate` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from motley.algorithms.base import Broadcast, ClientContext, Settings, Tensors, Trained
from motley.algorithms.local_settings import LocalSettings
from motley.algorithms.personal_model import PersonalModel, StartSettings
from motley.errors import TrainingError
from motley.plan import FULL_PRECISION
from motley.workload import Scalar, Workload

if TYPE_CHECKING:
    import torch

    from motley.training.flat import FlatModel
    from motley.training.replay import Step
    from motley.training.steps import Feed, ManyFeed


class FMLSettings(LocalSettings, StartSettings):
    """Settings of Federated Mutual Learning; `weight_decay` and `momentum` are of both models."""

    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Within a task; every task starts at rest."""
    label_share: float = Field(default=0.5, gt=0, le=1)
    """α: share of labels against the shared model in the private model's loss."""
    shared_label_share: float = Field(default=0.5, ge=0, le=1)
    """β: share of labels against the private model in the shared model's loss."""
    shared_rate: float | None = Field(default=None, ge=0)
    """Learning rate of the shared model; `learning_rate` unless given."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the softmax in distillation; the paper has none, which is 1."""

    def meme_rate(self, iteration: int) -> float:
        """Return the shared model's learning rate at an iteration of the run."""
        rate = self.learning_rate if self.shared_rate is None else self.shared_rate
        return self.decayed(rate, iteration)


class FML(PersonalModel):
    """Private models and a shared one, learning from each other."""

    name: ClassVar[str] = "fml"
    settings_type: ClassVar[type[Settings]] = FMLSettings
    tiers_choose_models: ClassVar[bool] = True
    settings: FMLSettings

    @classmethod
    def tier_fault(cls, bits: int, settings: Mapping[str, Scalar]) -> str:
        """Refuse low bit-widths."""
        if bits == FULL_PRECISION:
            return ""
        return f".bits: {cls.name} trains in full precision; leave bits out, or use quped"

    def train(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Trained:
        """Take τ steps on the private model and a copy of the broadcast, which is the update."""
        from motley.training.flat import FlatModel
        from motley.training.personal import deployed_tensors, full_precision_state
        from motley.training.steps import Feed, take_steps

        settings, workload = self.settings, context.workload
        variants, start = workload.variants(), deployed_tensors(self.state_of(context, personal))
        private = FlatModel.build(variants[context.plan.variant], start, context.device)
        meme = FlatModel.build(
            variants[context.task.global_variant], broadcast.tensors, context.device
        )
        feed = Feed(context, settings.batches(context))
        step = self._step(workload, private, meme, feed)
        loss = take_steps(context, settings.local_steps, step)
        return Trained(
            update=meme.tensors(),
            personal=full_precision_state(private.tensors()),
            samples=len(context.data.train),
            metrics={"loss": loss},
        )

    def _step(
        self, workload: Workload, private: FlatModel, meme: FlatModel, feed: Feed | ManyFeed
    ) -> Step:
        """Return a step of both models at once, of one client or of many, by its iteration.

        It returns the private model's loss.
        """
        from motley.training.distillation import Objective, Signal
        from motley.training.padded import Padded
        from motley.training.replay import repeated

        settings, models = self.settings, (private, meme)
        shares = (1 - settings.label_share, 1 - settings.shared_label_share)

        def step(iteration: int) -> torch.Tensor:
            batch = feed(iteration)
            many = batch if isinstance(batch, Padded) else None
            outputs = [model.module(batch.inputs) for model in models]
            heard = [Signal(o, settings.temperature, many) for o in reversed(outputs)]
            losses = [
                Objective(workload, batch.targets, signal, share, many)(o)
                for o, signal, share in zip(outputs, heard, shares, strict=True)
            ]
            rates = (settings.rate(iteration), settings.meme_rate(iteration))
            for model, loss, rate in zip(models, losses, rates, strict=True):
                gradient = model.gradient(loss.sum())
                model.descend(gradient, rate, settings.weight_decay, settings.momentum)
            return losses[0].detach()

        return repeated(step, feed, settings.epoch)

    def state_of(self, context: ClientContext, personal: Tensors | None) -> Tensors:
        """Return the private model as it was left, or the one that a client starts from."""
        from motley.training.personal import full_precision_state

        return full_precision_state(self.first_model(context)) if personal is None else personal

    trains_together: ClassVar[bool] = True

    def train_together(
        self,
        contexts: Sequence[ClientContext],
        broadcasts: Sequence[Broadcast],
        personals: Sequence[Tensors | None],
    ) -> list[Trained | TrainingError] | None:
        """Take τ steps of all clients in one go."""
        from motley.training.many import open_many
        from motley.training.personal import deployed_tensors, full_precision_state
        from motley.training.steps import ManyFeed, take_steps_together, trained_of_all

        settings = self.settings
        starts = [
            deployed_tensors(self.state_of(c, p)) for c, p in zip(contexts, personals, strict=True)
        ]
        private = open_many(contexts, contexts[0].plan.variant, starts)
        meme = open_many(contexts, contexts[0].task.global_variant, [b.tensors for b in broadcasts])
        if private is None or meme is None:
            return None
        batches = [settings.batches(context) for context in contexts]
        feed = ManyFeed(contexts, batches, [private, meme])
        step = self._step(contexts[0].workload, private, meme, feed)
        losses = take_steps_together(contexts, settings.local_steps, step)
        states = [full_precision_state(tensors) for tensors in private.tensors_of_all()]
        return trained_of_all(contexts, losses, meme.tensors_of_all(), states)
