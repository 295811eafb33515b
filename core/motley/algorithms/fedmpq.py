"""FedMPQ: a bit-width for every layer of every client, in training and on the wire.

Chen and Vikalo, "Mixed-Precision Quantization for Federated Learning on Resource-Constrained
Heterogeneous Devices", CVPR 2024, arXiv 2311.18129. A client holds its weights as integers only. It
trains them for τ steps under

    loss + λ Σ_l (P_l b_l / P) Σ_j ||B_{l,j}||            (group lasso over bit planes)

drops top planes that are nearly empty, and sends what planes are left. The server turns every
update back into full precision, takes the mean, and chooses each client's next widths from the
widths that came, the planes that clients dropped, and the client's budget (Algorithm 2).

Baselines are this method with parts switched off: AQFL is `allocation = "fixed"` with λ = ε = 0
(every layer at the client's budget), FPQ8 that with 8 bits for all.

| paper | setting |
|---|---|
| v_k | the tier's `bits`, or `budget` |
| λ, ε | `lasso`, `prune_below` (a share, not per cent) |
| τ | `local_steps` |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from motley.algorithms.allocation import (
    Report,
    affordable_budget,
    allocate,
    weighted_widths,
)
from motley.algorithms.base import (
    Algorithm,
    Broadcast,
    ClientContext,
    Coefficient,
    Finished,
    Member,
    Moment,
    Settings,
    Tensors,
    Trained,
    UpdateFacts,
    sent_width,
)
from motley.algorithms.local_settings import LocalSettings
from motley.errors import PlanError, TrainingError
from motley.models.units import UnitTable
from motley.plan import FULL_PRECISION, Plan
from motley.seeding import derive
from motley.wire import EncodedTensor, encode_dense, quantize_planes
from motley.wire.encodings.planes import SignedCodes, UniformPlanes
from motley.workload import Scalar, Workload

if TYPE_CHECKING:
    import torch

    from motley.training.integer import IntegerLayer, IntegerModel, IntegerRules
    from motley.training.replay import Drawn


class FedMPQSettings(LocalSettings):
    """Settings of FedMPQ."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of weights and of everything else; every task starts at rest."""
    budget: Annotated[float, Field(ge=1, le=8)] | Literal["auto", "tier"] = "tier"
    """v_k: bits a weight on average. "tier": the tier's `bits`; "auto": what link and storage
    allow (`affordable_budget`)."""
    allocation: Literal["pruning-growing", "fixed"] = "pruning-growing"
    """How widths are chosen; "fixed": every layer at the budget, rounded down."""
    strict: bool = True
    """Whether no client's average ever exceeds its budget; the released code lets it, slightly."""
    use_removed_bits: bool = True
    """Whether the planes that clients dropped count in the allocation; else sizes alone do."""
    lasso: float = Field(default=0.001, ge=0)
    """λ. Ten times as much outweighs the loss in layers of a few thousand weights."""
    prune_below: float = Field(default=0.03, ge=0, lt=1)
    """Share of ones below which a top plane is dropped; 0: only empty planes are."""
    rounding: Literal["stochastic", "power_of_two", "nearest"] = "stochastic"
    frozen_signs: bool = False
    range_rate: float = Field(default=1.0, ge=0)
    activation_bits: int = Field(default=4, ge=0, le=8)
    """In training; 0: full precision."""
    tail: Literal["fp32", "fp16"] = "fp16"
    """Biases, normalisation and shortcuts on the wire; a value of 65,520 or more needs "fp32"."""
    weighting: Literal["uniform", "samples"] = "uniform"

    def rules(self) -> IntegerRules:
        """Return how integers move."""
        from motley.training.integer import IntegerRules

        return IntegerRules(
            momentum=self.momentum,
            rounding=self.rounding,
            frozen_signs=self.frozen_signs,
            range_rate=self.range_rate,
        )


class FedMPQ(Algorithm):
    """Mixed precision per client and layer."""

    name: ClassVar[str] = "fedmpq"
    settings_type: ClassVar[type[Settings]] = FedMPQSettings
    tiers_choose_bits: ClassVar[bool] = True
    quantizes_ends: ClassVar[bool] = True
    settings: FedMPQSettings

    @property
    def local_steps(self) -> int:
        """Local iterations of one round, τ."""
        return self.settings.local_steps

    @classmethod
    def tier_fault(cls, bits: int, settings: Mapping[str, Scalar]) -> str:
        """Ask for a budget: the tier's bits, or one in the settings."""
        budget = FedMPQSettings.model_validate(dict(settings)).budget
        if budget == "tier" and bits == FULL_PRECISION:
            return ".bits: expected this tier's budget, 1 to 8 bits a weight, or settings.budget"
        return ""

    # --- server half -------------------------------------------------------------------------

    def plan(self, member: Member, moment: Moment) -> Plan:
        """Choose the width of each of the client's layers from what the last round sent."""
        settings = self._settings_of(member)
        sizes = member.units.quantized_sizes
        budget = client_budget(settings, member, moment)
        start = dict.fromkeys(sizes, int(budget))
        removed = dict.fromkeys(sizes, 1)
        if settings.allocation == "pruning-growing":
            if moment.last:
                reports = [read_report(moment.last[name], sizes) for name in sorted(moment.last)]
                start, counted = weighted_widths(reports, list(sizes))
                removed = counted if settings.use_removed_bits else removed
            start = allocate(start, removed, sizes, budget, strict=settings.strict)
        return Plan(
            variant=member.variant,
            bits=start,
            settings={
                **self.settings.planned(),
                **member.settings,
                "budget": budget,
            },
            iteration=(moment.round - 1) * self.local_steps,
            iterations=moment.rounds * self.local_steps,
            layout="planes",
            tail_bits=16 if settings.tail == "fp16" else FULL_PRECISION,
        )

    def measure(self, facts: UpdateFacts) -> dict[str, float]:
        """Keep what the allocation of the next round needs: widths, dropped planes, budget."""
        numbers = {"samples": float(facts.samples)}
        numbers["budget"] = float(cast(float, facts.plan.settings["budget"]))
        for unit, planned in facts.plan.bits.items():
            numbers[sent_width(unit)] = float(facts.bits[unit])
            numbers[f"removed.{unit}"] = float(planned - facts.bits[unit])
        return numbers

    def coefficients(self, scalars: Mapping[str, Mapping[str, float]]) -> Mapping[str, Coefficient]:
        """Weight clients equally, or by their samples."""
        if self.settings.weighting == "uniform":
            return dict.fromkeys(scalars, 1.0)
        return {name: values["samples"] for name, values in scalars.items()}

    def _settings_of(self, member: Member) -> FedMPQSettings:
        """Return the run's settings with the tier's laid over them."""
        return self.settings.model_validate({**self.settings.model_dump(), **member.settings})

    # --- client half -------------------------------------------------------------------------

    def train(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Trained:
        """Take τ steps on integers from the broadcast's, drop planes, return what is left."""
        from motley.models.rectifier import set_activation_bits
        from motley.models.units import read_tensors
        from motley.training.integer import lasso_weights
        from motley.training.steps import Feed, take_steps

        settings = self.settings
        model = self._open(context, broadcast)
        set_activation_bits(model.module, settings.activation_bits)
        lasso = lasso_weights(model.layers, settings.lasso)
        step = self._step(
            context.workload,
            model.module.train(),
            Feed(context, settings.batches(context)),
            lambda loss, rate: model.step(loss, rate, settings.momentum, lasso),
        )
        loss = take_steps(context, settings.local_steps, step)
        return self._trained(context, broadcast, model.layers, read_tensors(model.module), loss)

    trains_together: ClassVar[bool] = True

    def joint_plan(self, plan: Plan) -> dict[str, Any]:
        """Leave widths and budgets out: integers are each client's own, also in a group."""
        joint = super().joint_plan(plan)
        joint["bits"] = sorted(plan.bits)
        joint["settings"].pop("budget", None)
        return joint

    def train_together(
        self,
        contexts: Sequence[ClientContext],
        broadcasts: Sequence[Broadcast],
        personals: Sequence[Tensors | None],
    ) -> list[Trained | TrainingError] | None:
        """Take the τ steps of all clients in one go, each at the widths of its own plan."""
        from motley.models.rectifier import set_activation_bits
        from motley.training.integer import lasso_weights
        from motley.training.integer_many import ManyIntegers
        from motley.training.many import open_many
        from motley.training.steps import ManyFeed, take_steps_together

        settings, first = self.settings, contexts[0]
        layers = [self._layers(c, b) for c, b in zip(contexts, broadcasts, strict=True)]
        states = [broadcast.tensors for broadcast in broadcasts]
        many = open_many(contexts, first.task.global_variant, states)
        if many is None or many.form != "folded" or any(list(o) != list(layers[0]) for o in layers):
            return None  # a map over clients cannot tell whose activations it rounds
        model = ManyIntegers(many, layers)
        set_activation_bits(many.skeleton, settings.activation_bits, len(contexts))
        lasso = [lasso_weights(own, settings.lasso) for own in layers]
        step = self._step(
            first.workload,
            many.module,
            ManyFeed(contexts, [settings.batches(c) for c in contexts], [many]),
            lambda loss, rate: model.step(loss, rate, settings.momentum, lasso),
        )
        losses = take_steps_together(contexts, settings.local_steps, step)
        each = zip(contexts, broadcasts, layers, many.tensors_of_all(), losses, strict=True)
        return [
            loss
            if isinstance(loss, TrainingError)
            else self._trained(context, broadcast, own, rest, loss)
            for context, broadcast, own, rest, loss in each
        ]

    def _step(
        self,
        workload: Workload,
        module: Callable[[torch.Tensor], torch.Tensor],
        feed: Callable[[int], Drawn],
        move: Callable[[torch.Tensor, float], None],
    ) -> Callable[[int], torch.Tensor]:
        """Return one local step, of one client or of many, as a function of the iteration.

        `move` takes a step on a loss at a learning rate.
        """

        def step(iteration: int) -> torch.Tensor:
            batch = feed(iteration)
            losses = batch.means(workload.loss(module(batch.inputs), batch.targets))
            move(losses.sum(), self.settings.rate(iteration))
            return losses.detach()

        return step

    def _trained(
        self,
        context: ClientContext,
        broadcast: Broadcast,
        layers: Mapping[str, IntegerLayer],
        rest: Tensors,
        loss: float,
    ) -> Trained:
        """Drop planes of a client's integers; return what is left, with the `rest` of the model."""
        weights = sum(layer.codes.numel() for layer in layers.values())
        moved = sum(layer.moved_count() for layer in layers.values())
        for layer in layers.values():
            layer.prune(self.settings.prune_below)
        zeros = sum(int((layer.codes == 0).sum()) for layer in layers.values())
        return Trained(
            update=_packed(layers, rest, broadcast.encoded, context.plan),
            samples=len(context.data.train),
            metrics={"loss": loss, "moved": moved / weights, "zeros": zeros / weights},
        )

    def model_for(
        self, context: ClientContext, subject: str, broadcast: Broadcast, personal: Tensors | None
    ) -> tuple[str, Tensors]:
        """Return the global model at this client's widths, as it arrived."""
        return context.task.global_variant, broadcast.tensors

    def finish(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Finished:
        """Return the global model at this client's widths, packed.

        All clients are sent the one model in full precision, at the end alone; each rounds it to
        the widths of its own plan, as the server does for a round's broadcast.
        """
        from motley.models.units import variant_table

        variant = context.task.global_variant
        table = variant_table(context.workload.variants()[variant], ends=self.quantizes_ends)
        model = {}
        for row in table:
            tensor, half = broadcast.encoded[row.name], context.plan.tail_bits != FULL_PRECISION
            planes = context.plan.planes_of(row.unit, quantized=row.quantized)
            if planes:
                tensor = quantize_planes(tensor.decode(), planes)
            elif half and row.dtype == "float32":
                tensor = encode_dense(tensor.decode(), "float16")
            model[row.name] = tensor
        return Finished(variant=variant, model=model)

    def _open(self, context: ClientContext, broadcast: Broadcast) -> IntegerModel:
        """Build the model with integers where the broadcast has planes."""
        import torch

        from motley.models.units import load_tensors
        from motley.training.integer import IntegerModel, replace_weight

        layers = self._layers(context, broadcast)
        with torch.random.fork_rng(devices=[]):
            module = context.workload.variants()[context.task.global_variant].build()
        for name, layer in layers.items():
            replace_weight(module, name, layer)
        load_tensors(
            module, {n: t.decode() for n, t in broadcast.encoded.items() if n not in layers}
        )
        return IntegerModel(module.to(context.device), layers)

    def _layers(self, context: ClientContext, broadcast: Broadcast) -> dict[str, IntegerLayer]:
        """Return the integers of what came in planes, by name."""
        import torch

        from motley.training.integer import IntegerLayer

        task, rules, layers = context.task, self.settings.rules(), {}
        for name, tensor in broadcast.encoded.items():
            if not isinstance(tensor.encoding, UniformPlanes):
                continue
            generator = torch.Generator(device=context.device)
            generator.manual_seed(derive(task.run_seed, "rounding", task.round, task.client, name))
            layers[name] = IntegerLayer(
                cast(SignedCodes, tensor.codes()),
                float(tensor.scale[1]),
                tensor.encoding.bits,
                rules,
                generator,
            )
        if not layers:
            raise PlanError(
                f"no tensor of variant {task.global_variant!r} came in planes: {self.name} needs a "
                f"model with convolutions or linear layers to hold as integers"
            )
        return layers


def _packed(
    layers: Mapping[str, IntegerLayer], rest: Tensors, names: Iterable[str], plan: Plan
) -> dict[str, EncodedTensor]:
    """Return tensors in order of `names`: integers in planes, the rest value by value."""
    update = {}
    for name in names:
        if name in layers:
            update[name] = layers[name].encode()
            continue
        half = plan.tail_bits != FULL_PRECISION and rest[name].dtype == "float32"
        update[name] = encode_dense(rest[name], "float16" if half else None)
    return update


def client_budget(settings: FedMPQSettings, member: Member, moment: Moment) -> float:
    """Return v_k: the settings' number, the tier's width, or what the device can afford."""
    if settings.budget == "tier":
        return float(min(member.bits, 8))
    if settings.budget == "auto":
        weights = sum(member.units.quantized_sizes.values())
        tail = tail_bytes(member.units, settings.tail)
        return affordable_budget(weights, tail, member.link, moment.deadline)
    return settings.budget


def tail_bytes(units: UnitTable, tail: Literal["fp32", "fp16"]) -> int:
    """Return the bytes that travel besides the planes."""
    rest = [row for row in units if not row.quantized]
    halves = sum(row.size for row in rest if tail == "fp16" and row.dtype == "float32")
    return sum(row.nbytes for row in rest) - 2 * halves


def read_report(numbers: Mapping[str, float], sizes: Mapping[str, int]) -> Report:
    """Return what `measure` kept of a client's update."""
    return Report(
        samples=int(numbers["samples"]),
        budget=numbers["budget"],
        bits={unit: int(numbers[sent_width(unit)]) for unit in sizes},
        removed={unit: int(numbers[f"removed.{unit}"]) for unit in sizes},
    )
