"""A run as the engine works with it: its file, its algorithm, its unit tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from motley.algorithms import registry
from motley.algorithms.base import Algorithm, Member
from motley.device import Hardware, Link
from motley.models.units import UnitTable
from motley.promises import promises
from motley.runfile import RunFile, Tier, parse

EMPTY_TABLE = UnitTable(())


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the preparation of a run found out about its workload."""

    workload_version: int
    default_variant: str
    global_variant: str
    tables: Mapping[str, UnitTable]
    noise: Mapping[str, float] = field(default_factory=dict)
    """Planned noise multiplier of each tier of a private run."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ModelInfo:
        """Read what `model_process.prepare` returned."""
        return cls(
            workload_version=document["workload_version"],
            default_variant=document["default_variant"],
            global_variant=document["global_variant"],
            tables={name: UnitTable.from_json(t) for name, t in document["tables"].items()},
            noise=document.get("noise", {}),
        )


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """One run, parsed once."""

    id: str
    name: str
    runfile: RunFile
    algorithm: Algorithm
    model: ModelInfo | None

    @classmethod
    def from_row(cls, row: Any) -> RunContext:
        """Build from a row of the `runs` table."""
        runfile = parse(row.runfile, f"run file of {row.name}", on_record=True)
        algorithm = registry.find(runfile.run.algorithm).configure(runfile.settings)
        model = ModelInfo.from_json(row.model) if row.model else None
        return cls(id=row.id, name=row.name, runfile=runfile, algorithm=algorithm, model=model)

    @property
    def prepared(self) -> ModelInfo:
        """The model's tables; only asked for after the preparation."""
        assert self.model is not None, f"run {self.id} is not prepared"
        return self.model

    @property
    def global_table(self) -> UnitTable:
        """Unit table of the global model; empty for a method that has none."""
        if not self.algorithm.has_global_model:
            return EMPTY_TABLE
        return self.prepared.tables[self.prepared.global_variant]

    def tier(self, name: str) -> Tier:
        """Return the tier of that name."""
        return next(tier for tier in self.runfile.tiers if tier.name == name)

    def variant_for(self, tier: Tier) -> str:
        """Return the model variant that a tier's clients train."""
        if not self.algorithm.tiers_choose_models and self.algorithm.has_global_model:
            return self.prepared.global_variant
        return tier.variant or self.prepared.default_variant

    def member(self, row: Any, index: int, clients: int) -> Member:
        """Return a frozen client, a row of the `members` table, as algorithms see it.

        `index` is its place among the run's `clients` members in order of name.
        """
        tier, wire, profile = self.tier(row.tier), self.runfile.wire, row.profile
        return Member(
            name=row.client,
            tier=row.tier,
            variant=row.variant,
            units=self.prepared.tables[row.variant],
            link=Link(
                download=profile["download_bytes_per_second"],
                upload=profile["upload_bytes_per_second"],
                storage=profile["storage_free_bytes"],
            ),
            hardware=Hardware(memory=profile["memory_bytes"], gflops=profile["probe_gflops"]),
            index=index,
            clients=clients,
            bits=tier.bits,
            up_bits=tier.up_bits if tier.up_bits is not None else wire.up_bits,
            down_bits=tier.down_bits if tier.down_bits is not None else wire.down_bits,
            settings={**tier.settings, **self._noise(tier)},
        )

    @property
    def is_private(self) -> bool:
        """Whether the run promises its clients privacy."""
        return bool(promises(self.runfile))

    def _noise(self, tier: Tier) -> dict[str, float]:
        noise = self.prepared.noise
        return {"noise_multiplier": noise[tier.name]} if tier.name in noise else {}
