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
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

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
from motley.algorithms.fedp3_settings import FedP3Settings
from motley.algorithms.fedp3_strategies import (
    AGGREGATIONS,
    DISTANCE,
    TRAINERS,
    UPLOAD_STEPS,
    resolve,
)
from motley.errors import TrainingError
from motley.models.units import UnitTable
from motley.plan import Plan
from motley.prune.auto import Demands, Share, affordable_share
from motley.prune.layers import POLICIES, choosable_units, final_unit, group_of
from motley.prune.local import Bools, StepMasks
from motley.prune.masks import UploadMasks, is_prunable
from motley.prune.sampling import covering_sample
from motley.seeding import derive, numpy_generator
from motley.sparsity import Sparsity
from motley.wire import BitMask, EncodedTensor, encode_dense, encode_masked
from motley.workload import Scalar

if TYPE_CHECKING:
    from motley.privacy.clipping import Forward
    from motley.training.subnetwork import Subnetwork


class FedP3(Algorithm):
    """Personal sub-networks and layer-wise aggregation."""

    name: ClassVar[str] = "fedp3"
    settings_type: ClassVar[type[Settings]] = FedP3Settings
    keeps_personal_state: ClassVar[bool] = True
    encodings: ClassVar[tuple[str, ...]] = ("masked",)
    settings: FedP3Settings

    @property
    def local_steps(self) -> int:
        """Local iterations of one round, K."""
        return self.settings.local_steps

    def begins_global(self, settings: Mapping[str, Scalar]) -> bool:
        """Return that it has."""
        return True

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
                **self.settings.planned(),
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
        from motley.models.units import read_tensors

        table = self._table(context)
        network = self._open(context, table, broadcast, personal)
        if self.settings.privacy != "none":
            return self._train_privately(network, context, table, broadcast)
        loss = self._steps(network, context)
        return self._trained(context, table, broadcast, read_tensors(network.module), loss)

    trains_together: ClassVar[bool] = True

    def train_together(
        self,
        contexts: Sequence[ClientContext],
        broadcasts: Sequence[Broadcast],
        personals: Sequence[Tensors | None],
    ) -> list[Trained | TrainingError] | None:
        """Train the sub-networks of all clients in one go, each under masks of its own."""
        from motley.training.many import open_many
        from motley.training.steps import ManyFeed, take_steps_together
        from motley.training.subnetwork import ManySubnetwork, stacked

        settings, first = self.settings, contexts[0]
        if settings.privacy != "none":
            return None  # clipping and noise are each client's own
        each = list(zip(contexts, broadcasts, personals, strict=True))
        many = open_many(contexts, first.task.global_variant, [self._whole(*one) for one in each])
        if many is None:
            return None
        table = self._table(first)
        moving = [self._moving(c, table, b) for c, b, _ in each]
        local = [self._local_masks(context, table) for context in contexts]
        network = ManySubnetwork(many, stacked(moving, first.device), local)
        feed = ManyFeed(contexts, [settings.batches(c) for c in contexts], [many])
        step = resolve(TRAINERS, settings.trainer)(network, first.workload, feed, settings)
        losses = take_steps_together(contexts, settings.local_steps, step)
        return [
            loss
            if isinstance(loss, TrainingError)
            else self._trained(context, table, broadcast, trained, loss)
            for (context, broadcast, _), trained, loss in zip(
                each, many.tensors_of_all(), losses, strict=True
            )
        ]

    def _steps(self, network: Subnetwork, context: ClientContext) -> float:
        """Take a client's local steps; return their mean loss."""
        from motley.training.steps import Feed, take_steps

        settings = self.settings
        feed = Feed(context, settings.batches(context))
        step = resolve(TRAINERS, settings.trainer)(network, context.workload, feed, settings)
        return take_steps(context, settings.local_steps, step)

    def _trained(
        self,
        context: ClientContext,
        table: UnitTable,
        broadcast: Broadcast,
        trained: Tensors,
        loss: float,
    ) -> Trained:
        """Return what a client keeps, all of the model, and what of it goes up."""
        sent = {n: t for n, t in trained.items() if table[n].unit in context.plan.upload}
        step = resolve(UPLOAD_STEPS, self.settings.upload_step)
        return Trained(
            update=step(sent, broadcast, context),
            personal=trained,
            samples=len(context.data.train),
            metrics={"loss": loss},
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
            lambda: self._steps(network, context),
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

        with torch.random.fork_rng(devices=[]):
            module = context.workload.variants()[context.task.global_variant].build()
        load_tensors(module, self._whole(context, broadcast, personal))
        module.to(context.device).train()
        moving = {
            name: torch.from_numpy(bits).to(context.device)
            for name, bits in self._moving(context, table, broadcast).items()
        }
        return Subnetwork(module, moving, self._local_masks(context, table))

    def _moving(
        self, context: ClientContext, table: UnitTable, broadcast: Broadcast
    ) -> dict[str, Bools]:
        """Return where tensors may move: what came down of those that are not sent, what goes up
        of the others. A tensor that is not named moves everywhere."""
        task, plan, found = context.task, context.plan, {}
        upload = UploadMasks.of(plan, task.run_seed, task.round, task.client)
        for row in filter(is_prunable, table):
            if row.unit in plan.upload:
                mask = upload(row) if upload else None
            else:
                mask = broadcast.encoded[row.name].mask
            if mask is not None:
                found[row.name] = mask.bits().reshape(row.shape)
        return found

    def _local_masks(self, context: ClientContext, table: UnitTable) -> StepMasks:
        """Return a client's masks of single steps."""
        prunable = [row for row in table if is_prunable(row)]
        return StepMasks(
            rule=self.settings.local_pruning,
            keep=self.settings.local_keep,
            seed=context.task.run_seed,
            client=context.task.client,
            shapes={r.name: r.shape for r in prunable if r.unit not in context.plan.upload},
            first=prunable[0].name if prunable else "",
        )

    def _table(self, context: ClientContext) -> UnitTable:
        from motley.models.units import variant_table

        return variant_table(context.workload.variants()[context.task.global_variant])

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
