"""FedAvg: local SGD on the global model, weighted averaging.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, arXiv 1602.05629, algorithm 1. Symbols: local steps τ = `local_steps`, learning
rate η = `learning_rate`, samples n_k the weights of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from motley.algorithms.base import (
    Algorithm,
    Broadcast,
    ClientContext,
    Coefficient,
    Finished,
    Settings,
    Tensors,
    Trained,
)
from motley.algorithms.local_settings import LocalSettings
from motley.errors import PlanError, TrainingError, WorkloadError
from motley.privacy.settings import PrivacySettings
from motley.wire import encode_dense
from motley.workload import ArrayWorkload

if TYPE_CHECKING:
    import torch


class FedAvgSettings(LocalSettings, PrivacySettings):
    """Settings of FedAvg."""

    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Within a task; every task starts at rest."""
    weighting: Literal["samples", "uniform"] = "samples"
    """Weight of a client in the mean: its sample count, or the same for all."""

    @model_validator(mode="after")
    def _weights_tell_nothing(self) -> FedAvgSettings:
        if self.privacy != "none" and self.weighting == "samples":
            raise ValueError(
                'weighting = "samples" needs sample counts, which are not sent in a private run; '
                'set weighting = "uniform"'
            )
        return self


class FedAvg(Algorithm):
    """Federated averaging."""

    name: ClassVar[str] = "fedavg"
    settings_type: ClassVar[type[Settings]] = FedAvgSettings
    settings: FedAvgSettings

    @property
    def local_steps(self) -> int:
        """Local iterations of one round, τ."""
        return self.settings.local_steps

    def coefficients(self, scalars: Mapping[str, Mapping[str, float]]) -> Mapping[str, Coefficient]:
        """Weight clients by their (capped) samples, or equally."""
        if self.settings.weighting == "uniform":
            return dict.fromkeys(scalars, 1.0)
        return {name: values["samples"] for name, values in scalars.items()}

    def train(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Trained:
        """Run τ SGD steps from the broadcast and return the model's values."""
        if isinstance(context.workload, ArrayWorkload):
            return self._fit(context, context.workload, broadcast)
        from motley.models.units import load_tensors, read_tensors
        from motley.privacy.dp_sgd import Descent
        from motley.training.private import train_privately
        from motley.training.sgd import local_sgd

        module = context.workload.variants()[context.task.global_variant].build()
        load_tensors(module, broadcast.tensors)
        module.to(context.device)
        settings = self.settings

        def train() -> float:
            return local_sgd(
                module,
                context,
                settings.batches(context),
                steps=settings.local_steps,
                learning_rate=settings.rate,
                weight_decay=settings.weight_decay,
                momentum=settings.momentum,
            )

        if settings.privacy != "none":
            descent = Descent(settings.rate, settings.weight_decay, settings.momentum)
            names = list(broadcast.tensors)
            return train_privately(module, context, settings, broadcast, names, train, descent)
        loss = train()
        return Trained(
            update=read_tensors(module),
            samples=len(context.data.train),
            metrics={"loss": loss},
        )

    def _fit(
        self, context: ClientContext, workload: ArrayWorkload, broadcast: Broadcast
    ) -> Trained:
        """Let the workload train its arrays, over τ batches."""
        settings, first = self.settings, context.plan.iteration
        if settings.privacy != "none" or settings.weight_decay or settings.momentum:
            raise PlanError(
                "a workload of arrays trains them itself, with a learning rate alone; the run asks "
                "for privacy, weight_decay or momentum: leave them out"
            )
        if workload.augmentation is not None:
            raise WorkloadError(
                "this workload's models are arrays, and it changes samples itself, in fit; take "
                "its augmentation away"
            )
        batches = settings.batches(context)
        # Decoded for this alone: what `broadcast.tensors` keeps is what differences are taken to.
        tensors = {name: tensor.decode() for name, tensor in broadcast.encoded.items()}
        loss = workload.fit(
            tensors,
            context.data.train,
            (batches(first + step) for step in range(settings.local_steps)),
            settings.rate(first),
        )
        return Trained(
            update=tensors, samples=len(context.data.train), metrics={"loss": float(loss)}
        )

    trains_together: ClassVar[bool] = True

    def train_together(
        self,
        contexts: Sequence[ClientContext],
        broadcasts: Sequence[Broadcast],
        personals: Sequence[Tensors | None],
    ) -> list[Trained | TrainingError] | None:
        """Run τ SGD steps of all clients' models in one go."""
        from motley.training.many import open_many
        from motley.training.replay import repeated
        from motley.training.steps import ManyFeed, take_steps_together, trained_of_all

        settings, workload = self.settings, contexts[0].workload
        if settings.privacy != "none" or isinstance(workload, ArrayWorkload):
            return None  # clipping and noise are each client's own; arrays train by themselves
        states = [broadcast.tensors for broadcast in broadcasts]
        model = open_many(contexts, contexts[0].task.global_variant, states)
        if model is None:
            return None
        feed = ManyFeed(contexts, [settings.batches(c) for c in contexts], [model])

        def step(iteration: int) -> torch.Tensor:
            batch = feed(iteration)
            loss = batch.means(workload.loss(model.module(batch.inputs), batch.targets))
            gradient = model.gradient(loss.sum())
            rate = settings.rate(iteration)
            model.descend(gradient, rate, settings.weight_decay, settings.momentum)
            return loss.detach()

        repeat = repeated(step, feed, settings.epoch)
        losses = take_steps_together(contexts, settings.local_steps, repeat)
        return trained_of_all(contexts, losses, model.tensors_of_all())

    def model_for(
        self, context: ClientContext, subject: str, broadcast: Broadcast, personal: Tensors | None
    ) -> tuple[str, Tensors]:
        """Return the global model: FedAvg has no other."""
        return context.task.global_variant, broadcast.tensors

    def finish(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Finished:
        """Return the global model in full precision."""
        model = {name: encode_dense(values) for name, values in broadcast.tensors.items()}
        return Finished(variant=context.task.global_variant, model=model)
