"""Training alone: SGD on each client, or QuPeD's Algorithm 1 where a tier has a low bit-width.

What federated methods are compared with. Algorithm 1 (arXiv 2107.13892, section 3) alternates
proximal steps on weights and centres; `motley.training.alternating` holds the step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from motley.algorithms.base import Broadcast, ClientContext, Settings, Tensors, Trained
from motley.algorithms.local_settings import LocalSettings
from motley.algorithms.personal_model import PersonalModel
from motley.errors import TrainingError
from motley.plan import FULL_PRECISION
from motley.quantize.rules import CentreRules, CentreStep, Mode, Rates, Start
from motley.quantize.schedule import Schedule

if TYPE_CHECKING:
    import torch

    from motley.training.alternating import AlternatingModel
    from motley.training.distillation import Teacher
    from motley.training.proximity import Anchor
    from motley.training.replay import Step
    from motley.training.steps import Feed, ManyFeed

Penalty = Annotated[float, Field(ge=0)] | Literal["auto"]


class ProximalSettings(LocalSettings):
    """What methods share that pull weights to centres and fix them at the end of a run."""

    penalty: Penalty = "auto"
    """λ₀; it grows by λ₀ an epoch. "auto" sets it by the practical rule of
    `Schedule.practical_penalty`."""
    finetune_fraction: float = Field(default=0.2, ge=0, le=1)
    """Share of the run, at its end, in which weights follow their centres."""
    finetune_iterations: int | None = Field(default=None, ge=0)
    """Instead of a fraction: how many iterations."""

    @property
    def centre_count(self) -> int:
        """Centres of each quantized tensor; 0: 2^bits."""
        return 0

    @abstractmethod
    def rules(self) -> CentreRules:
        """Return the choices about quantization."""

    @abstractmethod
    def rates(self, schedule: Schedule, iteration: int, penalty: float, *, frozen: bool) -> Rates:
        """Return the step sizes of an iteration; `penalty` is λ₀, `frozen` means fine-tuning."""

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

    def first_penalty(self, distance: float, iterations: int) -> float:
        """Return λ₀ with the ½ inside R, for weights at a mean `distance` to their centres."""
        if self.penalty != "auto":
            return self.penalty
        schedule = self.schedule(iterations)
        return schedule.practical_penalty(distance, self.learning_rate, iterations)


class AlternatingSettings(ProximalSettings):
    """Settings of Algorithm 1; without low bit-widths those of plain SGD alone count.

    `learning_rate` is η₁, `centre_rate` η₂. `penalty` has the ½ inside R, and is so twice the
    released code's.
    """

    centres: int = Field(default=0, ge=0, le=256)
    """Centres of each quantized tensor; 0: 2^bits."""
    centre_rate: float = Field(default=1e-4, ge=0)
    mode: Mode = "hard"
    """Quantizer in training."""
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
    """Where centres start: see `motley.quantize.centres.initial_centres`."""
    clamp: bool = False
    """Whether quantized weights are kept in [-1, 1]."""
    finetune_centre_factor: float = Field(default=0.1, ge=0)
    """Factor on `centre_rate` in fine-tuning."""

    @property
    def centre_count(self) -> int:
        """Centres of each quantized tensor; 0: 2^bits."""
        return self.centres

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

    def rates(self, schedule: Schedule, iteration: int, penalty: float, *, frozen: bool) -> Rates:
        """Return the step sizes of an iteration; `penalty` is λ₀, `frozen` means fine-tuning."""
        factor = self.finetune_centre_factor if frozen else 1.0
        return Rates(
            weights=schedule.rate(self.learning_rate, iteration),
            centres=schedule.rate(self.centre_rate * factor, iteration),
            penalty=schedule.penalty(penalty, iteration, frozen=frozen),
            weight_decay=self.weight_decay,
        )


class Local(PersonalModel):
    """Each client trains on its own; the server only counts rounds."""

    name: ClassVar[str] = "local"
    settings_type: ClassVar[type[Settings]] = AlternatingSettings
    tiers_choose_models: ClassVar[bool] = True
    has_global_model: ClassVar[bool] = False
    settings: ProximalSettings

    def train(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Trained:
        """Take the task's steps on the personal model."""
        fresh = personal is None
        state, metrics = self._steps(context, self.state_of(context, personal), fresh=fresh)
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
        from motley.training.steps import trained_of_all

        states = [self.state_of(c, p) for c, p in zip(contexts, personals, strict=True)]
        found = self._steps_together(contexts, states, fresh=personals[0] is None)
        if found is None:
            return None
        new, losses = found
        return trained_of_all(contexts, losses, None, new)

    def _steps(
        self,
        context: ClientContext,
        state: Tensors,
        teacher: Teacher | None = None,
        anchor: Anchor | None = None,
        *,
        fresh: bool,
    ) -> tuple[Tensors, dict[str, float]]:
        """Take the task's iterations; return the new personal state and the metrics.

        `fresh`: whether the state was made for this task.
        """
        from motley.training.personal import close_state, open_state
        from motley.training.steps import Feed, take_steps

        settings, variant = self.settings, context.workload.variants()[context.plan.variant]
        model = open_state(state, variant, settings.rules(), context.device, anchor)
        feed = Feed(context, settings.batches(context))
        step = self._step(context, [state], model, feed, teacher, fresh=fresh)
        loss = take_steps(context, settings.local_steps, step)
        return close_state(model, state), {"loss": loss}

    def _steps_together(
        self,
        contexts: Sequence[ClientContext],
        states: Sequence[Tensors],
        teacher: Teacher | None = None,
        anchor: Anchor | None = None,
        *,
        fresh: bool,
    ) -> tuple[list[Tensors], list[float | TrainingError]] | None:
        """Take the iterations of K tasks; return new states and losses, None where they cannot."""
        from motley.training.personal import close_states, open_states
        from motley.training.steps import ManyFeed, take_steps_together

        settings = self.settings
        if len(_penalties(states)) > 1:
            return None
        model = open_states(states, contexts, settings.rules(), anchor)
        if model is None:
            return None
        models = [model.model, model.quantized, *([teacher.model] if teacher else [])]
        feed = ManyFeed(contexts, [settings.batches(context) for context in contexts], models)
        step = self._step(contexts[0], states, model, feed, teacher, fresh=fresh)
        losses = take_steps_together(contexts, settings.local_steps, step)
        return close_states(model, states), losses

    def _step(
        self,
        context: ClientContext,
        states: Sequence[Tensors],
        model: AlternatingModel,
        feed: Feed | ManyFeed,
        teacher: Teacher | None,
        *,
        fresh: bool,
    ) -> Step:
        """Return one iteration, of one client or of many, as a function of its number."""
        from motley.training.alternating import iterate
        from motley.training.replay import repeated

        settings, penalty = self.settings, max(_penalties(states), default=0.0)
        schedule = settings.schedule(context.plan.iterations)
        # Who comes so late has cells that nothing was learnt of: they are frozen from the client's
        # next task on. A run that is fine-tuning from its start is meant to be.
        is_late = fresh and bool(schedule.freeze_at) and schedule.frozen(context.plan.iteration)

        def given(iteration: int) -> tuple[bool, Rates]:
            # A client frozen before the run was extended stays in fine-tuning.
            frozen = model.frozen or (schedule.frozen(iteration) and not is_late)
            return frozen, settings.rates(schedule, iteration, penalty, frozen=frozen)

        def step(iteration: int) -> torch.Tensor:
            frozen, rates = given(iteration)
            if frozen:
                model.freeze()
            return iterate(model, context.workload, feed(iteration), rates, teacher)

        if settings.rules().step == "exact":  # medians, which are not replayed
            return step
        return repeated(step, feed, given)

    def state_of(self, context: ClientContext, personal: Tensors | None) -> Tensors:
        """Return the personal state to start from: the one handed in, or a fresh one.

        Raises:
            PlanError: the plan's bit-widths do not fit the model or the state.
        """
        from motley.training.personal import check_counts

        if personal is None:
            return self._fresh(context, self.first_model(context))
        variant = context.workload.variants()[context.plan.variant]
        check_counts(personal, variant, context.plan, self.settings.centre_count)
        return personal

    def _fresh(self, context: ClientContext, tensors: Tensors) -> Tensors:
        """Return the first state of a model with these values."""
        from motley.training import personal as state

        plan, settings = context.plan, self.settings
        variant = context.workload.variants()[plan.variant]
        counts = state.quantized_counts(variant, plan, settings.centre_count)
        if not counts:
            return state.full_precision_state(tensors)
        fresh = state.quantized_state(tensors, counts, settings.rules())
        distance = state.mean_distance(fresh)
        if context.received is not None and plan.down_bits != FULL_PRECISION:
            # Values that came down in few bits lie on their levels already, near centres.
            drawn = state.initial_tensors(variant, plan.variant, context.task.run_seed)
            drawn = state.quantized_state(drawn, counts, settings.rules())
            distance = max(distance, state.mean_distance(drawn))
        first = settings.first_penalty(distance, plan.iterations)
        return {**fresh, **state.first_records(first)}


def _penalties(states: Sequence[Tensors]) -> set[float]:
    """Return the λ₀ of states; none of those without centres."""
    return {float(state["penalty"][0]) for state in states if "penalty" in state}
