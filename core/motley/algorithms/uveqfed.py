"""UVeQFed: FedAvg whose clients send differences as points of a dithered lattice.

Shlezinger, Chen, Eldar, Poor, Cui, "UVeQFed: Universal Vector Quantization for Federated
Learning", arXiv 2006.03262. Both ends draw the same dither z, uniform over the lattice's basic
cell; a client sends the lattice point nearest to d / step + z, and the server takes
step · (point - z) for d. The error is then uniform over the cell and independent of d: its mean is
0, and half the variance is left of what stochastic rounding at the same step has on average.

The paper compresses the points with an entropy code. Here a coordinate takes `up_bits` bits, as
FedPAQ's values do, and the points that those can name are a box: `reach` says how the step is
chosen, and points outside of the box are moved to its edge.

| paper | setting |
|---|---|
| L | `lattice`: "hexagonal" (2) or "scalar" (1) |
| 2 + R / 5, deviations to the edge of the box in the authors' simulations | `reach` |
| R | `up_bits` |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from motley.algorithms.base import (
    Array,
    Broadcast,
    ClientContext,
    Member,
    Moment,
    Settings,
    Tensors,
    Trained,
)
from motley.algorithms.fedpaq import FedPAQ, FedPAQSettings
from motley.errors import TrainingError
from motley.models.units import UnitTable
from motley.plan import Plan
from motley.seeding import dither_seed
from motley.wire import EncodedTensor, quantize_lattice


class UVeQFedSettings(FedPAQSettings):
    """Settings of UVeQFed."""

    lattice: Literal["hexagonal", "scalar"] = "hexagonal"
    """Two neighbouring values a point, or one."""
    reach: Annotated[float, Field(gt=0)] | Literal["auto", "all"] = "auto"
    """How far out the outermost points stand, in root mean squares of a tensor's differences;
    "auto": 2 + up_bits / 5; "all": so far that no point is moved, and no error has a bias."""


class UVeQFed(FedPAQ):
    """Federated averaging of differences on a dithered lattice."""

    name: ClassVar[str] = "uveqfed"
    settings_type: ClassVar[type[Settings]] = UVeQFedSettings
    encodings: ClassVar[tuple[str, ...]] = ("lattice",)
    settings: UVeQFedSettings

    def plan(self, member: Member, moment: Moment) -> Plan:
        """Ask for the lattice that the settings name."""
        plan = super().plan(member, moment)
        settings = UVeQFedSettings.model_validate(dict(plan.settings))
        return replace(plan, layout=settings.lattice)

    def train(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Trained:
        """Run τ SGD steps and put the differences to the broadcast on the lattice."""
        trained = super().train(context, broadcast, personal)
        return self._on_lattice(context, _table(context), broadcast, trained)

    def train_together(
        self,
        contexts: Sequence[ClientContext],
        broadcasts: Sequence[Broadcast],
        personals: Sequence[Tensors | None],
    ) -> list[Trained | TrainingError] | None:
        """Train as FedAvg does, and put each client's differences on its own lattice."""
        found = super().train_together(contexts, broadcasts, personals)
        if found is None:
            return None
        table = _table(contexts[0])
        return [
            one
            if isinstance(one, TrainingError)
            else self._on_lattice(context, table, broadcast, one)
            for context, broadcast, one in zip(contexts, broadcasts, found, strict=True)
        ]

    def _on_lattice(
        self, context: ClientContext, table: UnitTable, broadcast: Broadcast, trained: Trained
    ) -> Trained:
        update: dict[str, Array | EncodedTensor] = {
            name: values
            if isinstance(values, EncodedTensor) or not context.plan.sends_delta_of(table[name])
            else self._encode(context, name, np.subtract(values, broadcast.tensors[name]))
            for name, values in trained.update.items()
        }
        return replace(trained, update=update)

    def _encode(self, context: ClientContext, name: str, delta: Array) -> EncodedTensor:
        task, plan, reach = context.task, context.plan, self.settings.reach
        if reach == "auto":
            reach = 2 + plan.up_bits / 5
        return quantize_lattice(
            delta,
            plan.up_bits,
            plan.lattice_dimensions,
            dither_seed(task.run_seed, task.round, task.client, name),
            0.0 if reach == "all" else reach,
        )


def _table(context: ClientContext) -> UnitTable:
    from motley.models.units import variant_table

    return variant_table(context.workload.variants()[context.task.global_variant])
