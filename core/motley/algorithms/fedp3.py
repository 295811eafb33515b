"""FedP3: every client a sub-network of its own, and only chosen layers travel back.

Yi, Gazagnadou, Richtarik, Lyu, "FedP3: Federated Personalized and Privacy-friendly Network Pruning
under Model Heterogeneity", ICLR 2024, arXiv 2404.09816. In each round client i gets the layers of
its set L_i and the last one whole, and of every other weight tensor the share p_i of its largest
values. It trains that model, with masks of single steps on the layers outside of L_i, and sends
L_i and the last layer. The server takes the mean of a layer over those who sent it.

| paper | setting |
|---|---|
| L_i | `layers`, by `plan` |
| P_i, p_i | `pruning`, `keep`: the share that is *kept* |
| Q_i, q_i | `local_pruning`, `local_keep` |
| FFC | `head` |

Sending a part of the model is no privacy guarantee: the server knows what it sent and sees the
exact change of every layer that comes back. `privacy` gives one (DP-FedP3, docs/privacy.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

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
)
from motley.algorithms.fedp3_strategies import (
    AGGREGATIONS,
    DISTANCE,
    TRAINERS,
    UPLOAD_STEPS,
    resolve,
)
from motley.algorithms.local_settings import LocalSettings
from motley.models.units import UnitTable
from motley.plan import Plan
from motley.privacy.settings import PrivacySettings
from motley.prune.auto import Demands, Share, affordable_share
from motley.prune.layers import POLICIES, choosable_units, final_unit, group_of
from motley.prune.local import LOCAL_RULES, StepMasks
from motley.prune.masks import PRUNING_RULES, UPLOAD_RULES, UploadMasks, is_prunable
from motley.prune.sampling import covering_sample
from motley.seeding import derive, numpy_generator
from motley.sparsity import Sparsity
from motley.wire import BitMask, EncodedTensor, encode_dense, encode_masked
from motley.workload import Scalar

if TYPE_CHECKING:
    from motley.privacy.clipping import Forward
    from motley.training.subnetwork import Subnetwork

_STRATEGIES: dict[str, Mapping[str, Any]] = {
    "layers": POLICIES,
    "pruning": PRUNING_RULES,
    "local_pruning": LOCAL_RULES,
    "trainer": TRAINERS,
    "upload_step": UPLOAD_STEPS,
    "aggregation": AGGREGATIONS,
    "upload_pruning": UPLOAD_RULES,
}


class FedP3Settings(LocalSettings, PrivacySettings):
    """Settings of FedP3."""

    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Within a task; every task starts at rest."""
    gradient_clip: float = Field(default=10.0, ge=0)
    """Bound on the L2 norm of a step's gradient in all that may move; 0: none."""
    layers: str = "opu2"
    """Layer policy: which layers a group's clients send besides the last one."""
    plan: Literal["index", "tier", "auto"] = "index"
    """Groups by place in order of name, by the tier's `group`, or layers and shares by device."""
    group: int | None = Field(default=None, ge=0)
    """With plan = "tier": the group of a tier's clients, from 0."""
    keep: float = Field(default=0.9, gt=0, le=1)
    """p: share of a pruned tensor's values that comes down; with plan = "auto" the most."""
    pruning: str = "magnitude"
    """Which values come down."""
    local_pruning: str = "fixed"
    """Masks of single steps on layers that the client does not send."""
    local_keep: float = Field(default=0.9, gt=0, le=1)
    """q: least share that a step's mask keeps; with plan = "auto" the most."""
    head: Literal["global", "personal"] = "global"
    """Whether the last layer comes down, or each client keeps one of its own (it goes up)."""
    trainer: str = "sgd"
    """Local trainer."""
    proximal: float = Field(default=0.01, ge=0)
    """μ of the trainer "fedprox"."""
    aggregation: str = "mean"
    """Weights of a layer's senders in their mean."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the aggregation "attention"."""
    upload_step: str = "plain"
    """What happens to the values to send."""
    upload_keep: float = Field(default=1.0, gt=0, le=1)
    """Extension: share of each weight tensor that goes up; the rest does not move."""
    upload_pruning: str = "random"
    """Which values go up; without looking at them."""

    @field_validator(*_STRATEGIES)
    @classmethod
    def _is_known(cls, value: str, info: Any) -> str:
        table = _STRATEGIES[info.field_name]
        if value not in table:
            raise ValueError(f"no strategy is called {value!r}; expected one of {', '.join(table)}")
        return value

    @model_validator(mode="after")
    def _keeps_the_promise(self) -> FedP3Settings:
        if self.privacy == "none":
            return self
        if self.head == "personal":
            raise ValueError(
                'head = "personal" goes up although the server never sent it: no noise on a '
                'difference hides its values. A private run needs head = "global"'
            )
        if self.upload_step != "plain":
            raise ValueError('a private run needs upload_step = "plain": nothing follows the noise')
        if self.privacy == "ldp-sgd" and self.trainer != "sgd":
            raise ValueError('privacy = "ldp-sgd" is a trainer of its own; leave trainer at "sgd"')
        return self


class FedP3(Algorithm):
    """Personal sub-networks and layer-wise aggregation."""

    name: ClassVar[str] = "fedp3"
    settings_type: ClassVar[type[Settings]] = FedP3Settings
    keeps_personal_state: ClassVar[bool] = True
    personal_begins_global: ClassVar[bool] = True
    encodings: ClassVar[tuple[str, ...]] = ("masked",)
    settings: FedP3Settings

    @property
    def local_steps(self) -> int:
        """Local iterations of one round, K."""
        return self.settings.local_steps

    @property
    def wants_distances(self) -> bool:
        """Whether weights follow from how far layers moved."""
        return self.settings.aggregation == "attention"

    @classmethod
    def tier_fault(cls, bits: int, settings: Mapping[str, Scalar]) -> str:
        """Ask for a group where tiers make the groups."""
        found = FedP3Settings.model_validate(dict(settings))
        if found.plan == "tier" and found.group is None:
            return '.settings.group: expected this tier\'s group, 0 or more, for plan = "tier"'
        return ""

    # --- server half -------------------------------------------------------------------------

    def select(
        self,
        candidates: Sequence[Member],
        count: int,
        rng: np.random.Generator,
        moment: Moment,
    ) -> list[Member]:
        """Choose clients so that every layer is sent by somebody, where so many can."""
        if count >= len(candidates):
            return list(candidates)
        sets = [self.share_of(member, moment).units for member in candidates]
        return [candidates[place] for place in covering_sample(sets, count, rng)]

    def share_of(self, member: Member, moment: Moment) -> Share:
        """Return a client's layers and shares for a round: L_i, p_i and q_i."""
        settings = self._settings_of(member)
        units = choosable_units(member.units)
        group = group_of(member.index, member.clients, len(units))
        if settings.plan == "tier":
            group = (settings.group or 0) % len(units)
        rng = numpy_generator(moment.seed, "layers", moment.round, member.name)
        chosen = POLICIES[settings.layers](units, group, member.index, rng)
        if settings.plan != "auto":
            return Share(chosen, settings.keep, settings.local_keep)
        wished = sorted(chosen, key=lambda unit: (units.index(unit) - group) % len(units))
        share = affordable_share(
            self._demands(member, moment), wished, member.link, member.hardware
        )
        keep = min(share.keep, settings.keep)
        return Share(share.units, keep, min(share.local_keep, settings.local_keep))

    def plan(self, member: Member, moment: Moment) -> Plan:
        """Choose what the client gets, trains and sends."""
        settings, share = self._settings_of(member), self.share_of(member, moment)
        final = final_unit(member.units)
        sends_all = share.units == choosable_units(member.units)
        return Plan(
            variant=member.variant,
            upload=(*share.units, final),
            settings={
                **self.settings.model_dump(exclude_none=True),
                **member.settings,
                "keep": share.keep,
                "local_keep": share.local_keep,
            },
            up_bits=member.up_bits,
            down_bits=member.down_bits,
            iteration=(moment.round - 1) * self.local_steps,
            iterations=moment.rounds * self.local_steps,
            sparsity=Sparsity(
                final=final,
                final_stays=settings.head == "personal",
                down_keep=1.0 if sends_all else share.keep,
                down_rule=settings.pruning,
                up_keep=settings.upload_keep,
                up_rule=settings.upload_pruning,
            ),
        )

    def measure(self, facts: UpdateFacts) -> dict[str, float]:
        """Keep |L_i|, and how far each layer moved where weights follow from it."""
        return {
            "samples": float(facts.samples),
            "layers": float(len(facts.plan.upload) - 1),
            **{f"{DISTANCE}{unit}": far for unit, far in facts.distances.items()},
        }

    def coefficients(self, scalars: Mapping[str, Mapping[str, float]]) -> Mapping[str, Coefficient]:
        """Weight a layer's senders by the rule of that name."""
        return AGGREGATIONS[self.settings.aggregation](scalars, self.settings.temperature)

    def _settings_of(self, member: Member) -> FedP3Settings:
        """Return the run's settings with the tier's laid over them."""
        return self.settings.model_validate({**self.settings.model_dump(), **member.settings})

    def _demands(self, member: Member, moment: Moment) -> Demands:
        settings, final = self._settings_of(member), final_unit(member.units)
        sizes = dict.fromkeys((*choosable_units(member.units), final), 0)
        for row in member.units:
            if row.unit in sizes:
                sizes[row.unit] += row.size
        return Demands(
            final=sizes.pop(final),
            sizes=sizes,
            deadline=moment.deadline,
            samples=self.local_steps * (settings.batch_size or 25),
            up_bytes=member.up_bits / 8,
            down_bytes=member.down_bits / 8,
        )

    # --- client half -------------------------------------------------------------------------

    def train(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Trained:
        """Train the sub-network that came down; send L_i and the last layer."""
        from motley.models.units import read_tensors, variant_table

        settings, plan = self.settings, context.plan
        table = variant_table(context.workload.variants()[context.task.global_variant])
        network = self._open(context, table, broadcast, personal)
        if settings.privacy != "none":
            return self._train_privately(network, context, table, broadcast)
        metrics = resolve(TRAINERS, settings.trainer)(network, context, settings)
        trained = read_tensors(network.module)
        sent = {name: t for name, t in trained.items() if table[name].unit in plan.upload}
        step = resolve(UPLOAD_STEPS, settings.upload_step)
        return Trained(
            update=step(sent, broadcast, context),
            personal=trained,
            samples=len(context.data.train),
            metrics=metrics,
        )

    def _train_privately(
        self, network: Subnetwork, context: ClientContext, table: UnitTable, broadcast: Broadcast
    ) -> Trained:
        """Train as DP-FedP3 does; only L_i and the last layer move with "ldp-sgd"."""
        from motley.models.units import read_tensors
        from motley.privacy.dp_sgd import Descent
        from motley.training.private import train_privately

        settings, plan = self.settings, context.plan

        def masked(step: int) -> Forward:
            masks = network.masks(plan.iteration + step)
            return lambda values: {**values, **{n: values[n] * mask for n, mask in masks.items()}}

        trained = train_privately(
            network.module,
            context,
            settings,
            broadcast,
            [row.name for row in table if row.unit in plan.upload],
            lambda: resolve(TRAINERS, settings.trainer)(network, context, settings),
            Descent(
                settings.rate, settings.weight_decay, settings.momentum, masked, network.moving
            ),
        )
        return replace(trained, personal=read_tensors(network.module))

    def model_for(
        self, context: ClientContext, subject: str, broadcast: Broadcast, personal: Tensors | None
    ) -> tuple[str, Tensors]:
        """Return the server's model, or the client's own as it came out of its last training."""
        own = None if subject == "global" else personal
        return context.task.global_variant, own or self._whole(context, broadcast, personal)

    def finish(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Finished:
        """Return the client's own model; pruned tensors as bitmaps and their other values."""
        _, tensors = self.model_for(context, "personal", broadcast, personal)
        model = {name: _packed(values) for name, values in tensors.items()}
        return Finished(variant=context.task.global_variant, model=model)

    def _open(
        self,
        context: ClientContext,
        table: UnitTable,
        broadcast: Broadcast,
        personal: Tensors | None,
    ) -> Subnetwork:
        """Build the model as it came down, and say what of it may move."""
        import torch

        from motley.models.units import load_tensors
        from motley.training.subnetwork import Subnetwork

        task, plan = context.task, context.plan
        with torch.random.fork_rng(devices=[]):
            module = context.workload.variants()[task.global_variant].build()
        load_tensors(module, self._whole(context, broadcast, personal))
        module.to(context.device)
        upload = UploadMasks.of(plan, task.run_seed, task.round, task.client)
        moving, shapes = {}, {}
        for row in filter(is_prunable, table):
            sent = row.unit in plan.upload
            mask = upload(row) if sent and upload else None
            if not sent:
                mask, shapes[row.name] = broadcast.encoded[row.name].mask, row.shape
            if mask is not None:
                bits = torch.from_numpy(mask.bits().reshape(row.shape))
                moving[row.name] = bits.to(context.device)
        local = StepMasks(
            rule=self.settings.local_pruning,
            keep=self.settings.local_keep,
            seed=task.run_seed,
            client=task.client,
            shapes=shapes,
            first=next(row.name for row in table if is_prunable(row)),
        )
        return Subnetwork(module, moving, local)

    def _whole(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Tensors:
        """Return a whole model: the broadcast, and what it leaves out from the client's own."""
        from motley.models.units import fresh_tensors

        task = context.task
        variant = context.workload.variants()[task.global_variant]
        if personal is None:
            personal = fresh_tensors(variant, derive(task.run_seed, "init", task.global_variant))
        return {name: broadcast.tensors.get(name, own) for name, own in personal.items()}


def _packed(values: np.ndarray[Any, np.dtype[np.generic]]) -> EncodedTensor:
    """Return a tensor without its zeros where that is shorter."""
    dense = encode_dense(values)
    if values.dtype != np.float32 or not values.size:
        return dense
    mask = BitMask.of(values != 0)
    kept = encode_masked(encode_dense(mask.take(values)), mask, values.shape)
    return kept if kept.nbytes < dense.nbytes else dense
