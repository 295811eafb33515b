"""Training alone: SGD on each client, or QuPeD's Algorithm 1 where a tier has a low bit-width.

What federated methods are compared with. Algorithm 1 (arXiv 2107.13892, section 3) alternates
proximal steps on weights and centres; `motley.training.alternating` holds the step.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
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
from motley.errors import PlanError, TrainingError
from motley.quantize.rules import CentreRules, CentreStep, Mode, Rates, Start
from motley.quantize.schedule import Schedule
from motley.wire import encode_codebook, encode_dense

if TYPE_CHECKING:
    from motley.training.distillation import Teacher


class AlternatingSettings(LocalSettings):
    """Settings of Algorithm 1; without low bit-widths those of plain SGD alone count.

    `learning_rate` is η₁, `centre_rate` η₂.
    """

    centres: int = Field(default=0, ge=0, le=256)
    """Centres of each quantized tensor; 0: 2^bits."""
    centre_rate: float = Field(default=1e-4, ge=0)
    mode: Mode = "hard"
    """Quantizer in training."""
    penalty: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """λ₀, with the ½ inside R (twice the released code's); it grows by λ₀ an epoch. "auto" sets it
    by the practical rule of `Schedule.practical_penalty`."""
    centre_step: CentreStep = "linear"
    centre_penalty: bool = True
    """Whether the penalty moves centres too."""
    gradient_clip: float = Field(default=10.0, gt=0)
    """Bound on each component of the centres' summed gradient."""
    pull_clip: float = Field(default=0.01, ge=0)
    """Longest linear step, as a share of the distance between a layer's outer initial centres."""
    steepness: float = Field(default=20.0, gt=0)
    """Soft mode: P times the smallest gap of a layer's initial centres."""
    start: Start = "range"
    """Where centres start: "range" as released, or "quantiles"."""
    clamp: bool = False
    """Whether quantized weights are kept in [-1, 1]."""
    finetune_fraction: float = Field(default=0.2, ge=0, le=1)
    """Share of the run, at its end, in which weights follow their centres."""
    finetune_iterations: int | None = Field(default=None, ge=0)
    """Instead of a fraction: how many iterations."""
    finetune_centre_factor: float = Field(default=0.1, ge=0)
    """Factor on `centre_rate` in fine-tuning."""

    def rules(self) -> CentreRules:
        """Return the choices about quantization."""
        return CentreRules(
            mode=self.mode,
            step=self.centre_step,
            penalised=self.centre_penalty,
            gradient_clip=self.gradient_clip,
            pull_clip=self.pull_clip,
            steepness=self.steepness,
            start=self.start,
            clamp=self.clamp,
        )

    def schedule(self, iterations: int) -> Schedule:
        """Return the schedule of a run of so many iterations, fine-tuning included."""
        tuned = self.finetune_iterations
        if tuned is None:
            tuned = round(self.finetune_fraction * iterations)
        return Schedule(
            iterations_per_epoch=self.iterations_per_epoch,
            decay=self.lr_decay,
            freeze_at=max(0, iterations - tuned) if tuned else None,
        )

    def rates(self, schedule: Schedule, iteration: int, penalty: float, *, frozen: bool) -> Rates:
        """Return the step sizes of an iteration; `penalty` is λ₀, `frozen` means fine-tuning."""
        factor = self.finetune_centre_factor if frozen else 1.0
        return Rates(
            weights=schedule.rate(self.learning_rate, iteration),
            centres=schedule.rate(self.centre_rate * factor, iteration),
            penalty=schedule.penalty(penalty, iteration),
            weight_decay=self.weight_decay,
        )


class Local(Algorithm):
    """Each client trains on its own; the server only counts rounds."""

    name: ClassVar[str] = "local"
    settings_type: ClassVar[type[Settings]] = AlternatingSettings
    keeps_personal_state: ClassVar[bool] = True
    tiers_choose_models: ClassVar[bool] = True
    has_global_model: ClassVar[bool] = False
    settings: AlternatingSettings

    @property
    def local_steps(self) -> int:
        """Iterations of one round."""
        return self.settings.local_steps

    def train(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Trained:
        """Take the task's steps on the personal model."""
        state, metrics = self._steps(context, personal, None)
        return Trained(update={}, personal=state, samples=len(context.data.train), metrics=metrics)

    trains_together: ClassVar[bool] = True

    def kind_of(self, context: ClientContext, personal: Tensors | None) -> Hashable:
        """Return what a state holds (centres, codes) and its λ₀: they are the same in a group."""
        if personal is None:
            return "fresh"
        return tuple(personal), personal["penalty"].tobytes() if "penalty" in personal else b""

    def train_together(
        self,
        contexts: Sequence[ClientContext],
        broadcasts: Sequence[Broadcast],
        personals: Sequence[Tensors | None],
    ) -> list[Trained | TrainingError] | None:
        """Take the task's steps on all clients' personal models in one go."""
        found = self._steps_together(contexts, personals, None)
        if found is None:
            return None
        states, losses = found
        return [
            loss
            if isinstance(loss, TrainingError)
            else Trained(
                update={},
                personal=state,
                samples=len(context.data.train),
                metrics={"loss": loss},
            )
            for context, state, loss in zip(contexts, states, losses, strict=True)
        ]

    def model_for(
        self, context: ClientContext, subject: str, broadcast: Broadcast, personal: Tensors | None
    ) -> tuple[str, Tensors]:
        """Return the personal model, hard-quantized; PlanError for "global", there is none."""
        from motley.training.personal import deployed_tensors

        if subject == "global":
            raise PlanError(
                f"{self.name} has no global model to evaluate; set subject to 'personal'"
            )
        return context.plan.variant, deployed_tensors(self._state(context, personal))

    def finish(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Finished:
        """Return the personal model: quantized tensors as indices and centres, the rest dense."""
        from motley.quantize.centres import unused
        from motley.training.personal import codes_and_centres, deployed_tensors

        state = self._state(context, personal)
        model = {name: encode_dense(values) for name, values in deployed_tensors(state).items()}
        idle = 0
        for name, (codes, centres) in codes_and_centres(state).items():
            model[name] = encode_codebook(codes, centres.astype(np.float32))
            idle += unused(codes, centres.size)
        metrics: dict[str, float] = {}
        if "centre_updates" in state:
            moved, updates = state["centre_updates"]
            metrics = {
                "unused_centres": float(idle),
                "centre_updates_moved": float(moved) / max(1, int(updates)),
            }
        return Finished(variant=context.plan.variant, model=model, metrics=metrics)

    def _steps(
        self, context: ClientContext, personal: Tensors | None, teacher: Teacher | None
    ) -> tuple[Tensors, dict[str, float]]:
        """Take the task's iterations; return the new personal state and the metrics."""
        import torch

        from motley.training.alternating import iterate
        from motley.training.evaluation import to_torch
        from motley.training.losses import mean_loss
        from motley.training.personal import close_state, open_state

        settings, plan = self.settings, context.plan
        batches = settings.batches(context)
        schedule = settings.schedule(plan.iterations)
        state = self._state(context, personal)
        variant = context.workload.variants()[plan.variant]
        model = open_state(state, variant, settings.rules(), context.device)
        penalty = float(state["penalty"][0]) if "penalty" in state else 0.0
        inputs, targets = to_torch(context.data.train, context.device)
        losses = []
        for done in range(settings.local_steps):
            iteration = plan.iteration + done
            if schedule.frozen(iteration):
                model.freeze()
            index = torch.from_numpy(batches(iteration)).to(context.device)
            # A client frozen before the run was extended stays in fine-tuning.
            rates = settings.rates(schedule, iteration, penalty, frozen=model.frozen)
            losses.append(
                iterate(model, context.workload, inputs[index], targets[index], rates, teacher)
            )
            context.progress((done + 1) / settings.local_steps)
        return close_state(model, state), {"loss": mean_loss(losses, context.task)}

    def _steps_together(
        self,
        contexts: Sequence[ClientContext],
        personals: Sequence[Tensors | None],
        teacher: Teacher | None,
    ) -> tuple[list[Tensors], list[float | TrainingError]] | None:
        """Take the iterations of K tasks; return new states and losses, None where they cannot."""
        import torch

        from motley.training.alternating import iterate
        from motley.training.losses import mean_losses
        from motley.training.padded import PaddedBatches
        from motley.training.personal import close_states, open_states

        settings, plan, workload = self.settings, contexts[0].plan, contexts[0].workload
        schedule = settings.schedule(plan.iterations)
        states = [self._state(c, p) for c, p in zip(contexts, personals, strict=True)]
        model = open_states(states, contexts, settings.rules())
        if model is None:
            return None
        penalty = float(states[0]["penalty"][0]) if "penalty" in states[0] else 0.0
        batches = PaddedBatches(contexts, [settings.batches(context) for context in contexts])
        losses = []
        for done in range(settings.local_steps):
            iteration = plan.iteration + done
            if schedule.frozen(iteration):
                model.freeze()
            batch = batches(iteration)
            rates = settings.rates(schedule, iteration, penalty, frozen=model.frozen)
            losses.append(
                iterate(model, workload, batch.inputs, batch.targets, rates, teacher, batch)
            )
            for context in contexts:
                context.progress((done + 1) / settings.local_steps)
        tasks = [context.task for context in contexts]
        return close_states(model, states), mean_losses(torch.stack(losses, 1), tasks)

    def _state(self, context: ClientContext, personal: Tensors | None) -> Tensors:
        """Return the personal state to start from: the one handed in, or a fresh one.

        Raises:
            PlanError: the plan's bit-widths do not fit the model or the state.
        """
        from motley.training import personal as state

        plan, settings = context.plan, self.settings
        if personal is not None:
            state.check_counts(personal, plan, settings.centres)
            return personal
        variant = context.workload.variants()[plan.variant]
        tensors = state.initial_tensors(variant, plan.variant, context.task.run_seed)
        counts = state.quantized_counts(variant, plan, settings.centres)
        if not counts:
            return state.full_precision_state(tensors)
        fresh = state.quantized_state(tensors, counts, settings.rules())
        if settings.penalty == "auto":
            schedule = settings.schedule(plan.iterations)
            distance = state.mean_distance(fresh)
            first = schedule.practical_penalty(distance, settings.learning_rate, plan.iterations)
        else:
            first = settings.penalty
        return {**fresh, **state.first_records(first)}
