"""BinaryRelax: binary weights by a relaxed projection that hardens, on each device alone.

Yin et al., "BinaryRelax: A Relaxation Approach for Training Deep Neural Networks with Quantized
Weights", SIAM Journal on Imaging Sciences 2018, arXiv 1801.06313, algorithm 1. Weights y are
stepped with the gradient at x, which lies between y and its projection on binary weights with a
scale for each layer:

    y ← y - η ∇f(x)         x = ( λ proj(y) + y ) / ( λ + 1 ),   proj(y) = mean|y| · sign(y)

λ grows by a factor each epoch; in the last part of the run x = proj(y).

A baseline of centralized quantization: one device holds all data, or each trains alone (`local`).

| paper | setting |
|---|---|
| λ₀, ρ | `relaxation`, `growth` |
| phase II | `hard_fraction` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from motley.algorithms.base import Broadcast, ClientContext, Settings, Tensors, Trained
from motley.algorithms.local_settings import LocalSettings
from motley.algorithms.personal_model import PersonalModel
from motley.algorithms.proxquant import binary_fault
from motley.errors import TrainingError
from motley.workload import Scalar

if TYPE_CHECKING:
    import torch

    from motley.training.relaxed import Flat, RelaxedModel
    from motley.training.replay import Step
    from motley.training.steps import Feed, ManyFeed


class BinaryRelaxSettings(LocalSettings):
    """Settings of BinaryRelax."""

    relaxation: float = Field(default=1.0, gt=0)
    """λ at the start of the run."""
    growth: float = Field(default=1.04, ge=1)
    """ρ: factor on λ after every `iterations_per_epoch` iterations of the run."""
    hard_fraction: float = Field(default=0.25, ge=0, le=1)
    """Share of the run, at its end, in which the model runs with the projection itself."""

    def share(self, iteration: int, iterations: int) -> float:
        """Return λ / (λ + 1) at an iteration of a run of `iterations`; 1 in the hard phase."""
        if iteration >= iterations - round(self.hard_fraction * iterations):
            return 1.0
        inverse: float = self.growth ** -self.epoch(iteration) / self.relaxation
        return 1 / (1 + inverse)


class BinaryRelax(PersonalModel):
    """Each client trains a model of binary weights on its own."""

    name: ClassVar[str] = "binaryrelax"
    settings_type: ClassVar[type[Settings]] = BinaryRelaxSettings
    tiers_choose_models: ClassVar[bool] = True
    has_global_model: ClassVar[bool] = False
    settings: BinaryRelaxSettings

    @classmethod
    def tier_fault(cls, bits: int, settings: Mapping[str, Scalar]) -> str:
        """Ask for 1 bit, or full precision."""
        return binary_fault(cls.name, bits)

    def train(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Trained:
        """Take the task's steps on y; the state's centres are ± the scale of each layer."""
        from motley.training.relaxed import RelaxedModel, binary_state
        from motley.training.steps import Feed, take_steps

        settings, workload = self.settings, context.workload
        model = RelaxedModel.open(
            self.state_of(context, personal),
            workload.variants()[context.plan.variant],
            context.device,
        )
        feed = Feed(context, settings.batches(context))
        step = self._step(context, model, feed)
        loss = take_steps(context, settings.local_steps, step)
        return Trained(
            update={},
            personal=binary_state(model.close().tensors(), model.names),
            samples=len(context.data.train),
            metrics={"loss": loss},
        )

    trains_together: ClassVar[bool] = True

    def train_together(
        self,
        contexts: Sequence[ClientContext],
        broadcasts: Sequence[Broadcast],
        personals: Sequence[Tensors | None],
    ) -> list[Trained | TrainingError] | None:
        """Take the task's steps of all clients in one go."""
        from motley.training.relaxed import RelaxedModel, binary_state
        from motley.training.steps import ManyFeed, take_steps_together, trained_of_all

        settings = self.settings
        states = [self.state_of(c, p) for c, p in zip(contexts, personals, strict=True)]
        model = RelaxedModel.open_many(states, contexts)
        if model is None:
            return None
        models = [model.relaxed, model.model]
        feed = ManyFeed(contexts, [settings.batches(c) for c in contexts], models)
        step = self._step(contexts[0], model, feed)
        losses = take_steps_together(contexts, settings.local_steps, step)
        ended = model.close().tensors_of_all()
        states = [binary_state(tensors, model.names) for tensors in ended]
        return trained_of_all(contexts, losses, None, states)

    def _step(
        self, context: ClientContext, model: RelaxedModel[Flat], feed: Feed | ManyFeed
    ) -> Step:
        """Return one local step, of one client or of many, as a function of the iteration."""
        from motley.training.replay import repeated

        settings, workload, iterations = self.settings, context.workload, context.plan.iterations

        def given(iteration: int) -> tuple[float, float]:
            return settings.share(iteration, iterations), settings.rate(iteration)

        def step(iteration: int) -> torch.Tensor:
            batch = feed(iteration)
            share, rate = given(iteration)
            model.relax(share)
            loss = batch.means(workload.loss(model.relaxed.module(batch.inputs), batch.targets))
            gradient = model.relaxed.gradient(loss.sum())
            model.model.descend(gradient, rate, settings.weight_decay)
            return loss.detach()

        return repeated(step, feed, given)

    def state_of(self, context: ClientContext, personal: Tensors | None) -> Tensors:
        """Return the state handed in, or a fresh one.

        Raises:
            PlanError: the plan's bit-widths do not fit the model or the state.
        """
        from motley.training import personal as state
        from motley.training.relaxed import binary_state

        plan = context.plan
        variant = context.workload.variants()[plan.variant]
        if personal is not None:
            state.check_counts(personal, variant, plan)
            return personal
        counts = state.quantized_counts(variant, plan)
        return binary_state(self.first_model(context), tuple(counts))
