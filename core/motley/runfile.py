"""The run file: one training job as TOML, validated with errors that name the field.

`docs/run-file.md` explains every field with an example. Durations are in seconds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from motley.algorithms import registry
from motley.algorithms.base import Algorithm
from motley.errors import MotleyError, RunFileError, did_you_mean
from motley.faults import describe
from motley.plan import FULL_PRECISION, check_bits
from motley.promises import promise_faults
from motley.workload import Scalar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Bits = Annotated[int, Field(description="1 to 8, or 32 for full precision")]
FEWEST_ROBUST = 3
"""Updates of a round below which a median or trimmed mean protects from nobody."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("Input should be a finite number")
    return value


PlainValue = Annotated[
    bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | float | str, BeforeValidator(_finite)
]


def _check_bits(**widths: int) -> None:
    for name, bits in widths.items():
        try:
            check_bits(bits, name)
        except MotleyError as error:
            raise ValueError(str(error)) from None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Run(_Section):
    """What is trained, by which method, for how long."""

    name: Name
    algorithm: str
    rounds: int = Field(ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    init: str = ""
    """Initial global model: a payload or safetensors file, or `run:NAME` for another run's newest
    model."""
    on_lost_state: Literal["restart", "exclude"] = "restart"
    """What happens to a client whose personal state is gone: start afresh, or leave the run."""
    global_variant: str = ""
    """Variant of the global model; default: the workload's first."""

    @field_validator("algorithm")
    @classmethod
    def _algorithm_exists(cls, name: str) -> str:
        known = registry.names()
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"no such algorithm{hint} (known: {', '.join(known)})")
        return name


class WorkloadSection(_Section):
    """Which workload; each machine maps the name to code of its owner's choice."""

    name: Name
    arguments: dict[str, PlainValue] = Field(default_factory=dict)


class Clients(_Section):
    """Who takes part."""

    expected: int = Field(ge=1)
    """The run starts when so many clients are there; their names are then frozen."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the run's clients that a round counts."""
    count: int | None = Field(default=None, ge=1)
    """Instead of a fraction: how many."""
    over_select: float = Field(default=1.0, ge=1, le=4)
    """Tasks given out for each update that is counted; the surplus is not counted."""
    minimum: int = Field(default=1, ge=1)
    """Updates below which a round at its deadline is tried again with a new cohort."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Only clients that carry these labels."""
    max_samples: int | None = Field(default=None, ge=1)
    """Cap on the sample counts that clients report and weights use."""

    @model_validator(mode="after")
    def _consistent(self) -> Clients:
        if self.count is not None and "fraction" in self.model_fields_set:
            raise ValueError("give fraction or count, not both")
        if self.goal(self.expected) < self.minimum:
            raise ValueError(
                f"minimum is {self.minimum} but a round counts only {self.goal(self.expected)} "
                f"of {self.expected} expected clients; lower minimum or raise fraction or count"
            )
        return self

    def goal(self, clients: int) -> int:
        """Return how many updates a round counts among `clients`."""
        wanted = self.count if self.count is not None else round(self.fraction * clients)
        return max(1, min(clients, wanted))


class Round(_Section):
    """How a round ends."""

    deadline_seconds: float = Field(default=3600.0, gt=0)
    retries: int = Field(default=2, ge=0)
    """New cohorts for a round below its minimum before the run pauses with the reason."""


class Wire(_Section):
    """Bit-widths of the global model on the wire."""

    up_bits: Bits = FULL_PRECISION
    down_bits: Bits = FULL_PRECISION

    @model_validator(mode="after")
    def _bits(self) -> Wire:
        _check_bits(up_bits=self.up_bits, down_bits=self.down_bits)
        return self


class Aggregate(_Section):
    """How updates are checked and combined."""

    rule: Literal["mean", "trimmed_mean", "median"] = "mean"
    """`mean` is the algorithm's own; the others bound what a few clients can do."""
    trim: float = Field(default=0.1, gt=0, lt=0.5)
    """Trimmed mean: share of the updates that is cut on each side of every coordinate."""
    max_update_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Updates further than this from the broadcast (L2 norm) are refused."""

    @model_validator(mode="after")
    def _trim_is_used(self) -> Aggregate:
        if "trim" in self.model_fields_set and self.rule != "trimmed_mean":
            raise ValueError('trim belongs to rule = "trimmed_mean"')
        return self

    @property
    def is_robust(self) -> bool:
        """Whether another rule than the algorithm's own combines the updates."""
        return self.rule != "mean"


class Evaluate(_Section):
    """Evaluation rounds between training rounds."""

    every: int = Field(default=0, ge=0)
    """After every so many rounds, and after the last; 0: never."""
    subject: Literal["", "global", "personal", "both"] = ""
    """Which model; "": the personal one where the method keeps one, else the global one."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    deadline_seconds: float = Field(default=600.0, gt=0)
    held_out: str = ""
    """A data spec that the server itself evaluates the global model on."""


class Keep(_Section):
    """What stays on the server's disk."""

    rounds: int = Field(default=10, ge=0)
    """Closed rounds whose payloads are kept, so that they can be replayed; 0: all of them."""


class When(_Section):
    """Conditions on a device profile; all that are given must hold."""

    memory_gib_below: float | None = None
    cores_below: int | None = None
    probe_gflops_below: float | None = None
    accelerator: bool | None = None
    labels: dict[str, str] = Field(default_factory=dict)


class Tier(_Section):
    """What one class of devices trains."""

    name: Name
    when: When | None = None
    """Devices it is for; without it, those whose owner named this tier, or all that are left."""
    variant: str = ""
    bits: Bits = FULL_PRECISION
    up_bits: Bits | None = None
    down_bits: Bits | None = None
    settings: dict[str, PlainValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _bits(self) -> Tier:
        widths = {"bits": self.bits, "up_bits": self.up_bits, "down_bits": self.down_bits}
        _check_bits(**{name: bits for name, bits in widths.items() if bits is not None})
        return self


class Simulate(_Section):
    """Who takes part in a simulation; a server of devices ignores it."""

    clients: int | None = Field(default=None, ge=1)
    """How many; default: as many as `tiers` says, else `clients.expected`."""
    names: str | tuple[Name, ...] = "client-{client}"
    """Names in order of number, or a template for them."""
    data: str = ""
    """Template of each client's data spec."""
    tiers: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Clients of each tier, in order of number."""
    threads: int | None = Field(default=None, ge=1)
    """Training threads of each client; default: 1, and of clients that train together all cores."""


class RunFile(_Section):
    """A whole run file."""

    run: Run
    workload: WorkloadSection
    clients: Clients
    round: Round = Field(default_factory=Round)
    settings: dict[str, PlainValue] = Field(default_factory=dict)
    """The algorithm's settings."""
    wire: Wire = Field(default_factory=Wire)
    aggregate: Aggregate = Field(default_factory=Aggregate)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    keep: Keep = Field(default_factory=Keep)
    tiers: tuple[Tier, ...] = (Tier(name="all"),)
    simulate: Simulate = Field(default_factory=Simulate)

    @model_validator(mode="after")
    def _tiers(self) -> RunFile:
        names = [tier.name for tier in self.tiers]
        if not names or len(set(names)) != len(names):
            raise ValueError("tiers: expected at least one, each with a name of its own")
        return self


LARGEST = 1e15
"""What an infinite number of an older record counts as."""


def parse(text: str, source: str = "run file", *, on_record: bool = False) -> RunFile:
    """Read a run file's text; raise RunFileError with every fault, each naming its field.

    `on_record`: it was taken once, perhaps by an older version that let numbers be infinite.
    """
    try:
        document = tomllib.loads(text)
        document = _bounded(document) if on_record else document
    except tomllib.TOMLDecodeError as error:
        raise RunFileError(f"{source} is not TOML: {error}") from None
    faults: list[str] = []
    runfile: RunFile | None = None
    try:
        runfile = RunFile.model_validate(document)
    except ValidationError as error:
        faults = describe(error, RunFile)
        faults += _settings_faults_of(document, {fault.partition(":")[0] for fault in faults})
    if runfile is not None:
        unfit = _settings_faults(runfile)
        faults = [*unfit, *_method_faults(runfile, settings_are_valid=not unfit)]
        faults += [] if unfit else promise_faults(runfile)
    if faults or runfile is None:
        raise RunFileError(f"{source} is not valid:\n  " + "\n  ".join(faults))
    return runfile


def _bounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _bounded(one) for name, one in value.items()}
    return math.copysign(LARGEST, value) if value in (math.inf, -math.inf) else value


def _settings_faults_of(document: Mapping[str, Any], named: set[str]) -> list[str]:
    """Check the settings of a document that is no run file, so that it is told all at once.

    `named`: fields of which a fault is known already.
    """
    run, settings = document.get("run"), document.get("settings", {})
    name = run.get("algorithm") if isinstance(run, Mapping) else None
    if name not in registry.names() or not isinstance(settings, Mapping):
        return []
    found = _layer_faults(registry.find(name), [("settings", settings)])
    return [fault for fault in found if fault.partition(":")[0] not in named]


def _settings_faults(runfile: RunFile) -> list[str]:
    """Check the algorithm's settings, alone and with each tier's laid over them."""
    layers = [("settings", runfile.settings)]
    layers += [
        (f"tiers.{tier.name}.settings", {**runfile.settings, **tier.settings})
        for tier in runfile.tiers
        if tier.settings
    ]
    return _layer_faults(registry.find(runfile.run.algorithm), layers)


def _layer_faults(
    algorithm: type[Algorithm], layers: Sequence[tuple[str, Mapping[str, Scalar]]]
) -> list[str]:
    faults = []
    for place, values in layers:
        try:
            algorithm.configure(values)
        except ValidationError as error:
            faults += describe(error, algorithm.settings_type, place)
    return list(dict.fromkeys(faults))


def _method_faults(runfile: RunFile, *, settings_are_valid: bool) -> list[str]:
    """Check what only some methods can do: personal models, tiers with models of their own."""
    faults = []
    name, subject = runfile.run.algorithm, runfile.evaluate.subject
    algorithm = registry.find(name)
    if subject in ("global", "both") and not algorithm.has_global_model:
        faults.append(f'evaluate.subject: {name} has no global model; expected "personal"')
    if subject in ("personal", "both") and not algorithm.has_personal_models():
        faults.append(f'evaluate.subject: {name} has no personal models; expected "global"')
    if runfile.run.init and not algorithm.has_global_model:
        faults.append(f"run.init: {name} has no global model to start; leave it out")
    faults += _aggregate_faults(runfile)
    for tier in runfile.tiers:
        found = _tier_faults(algorithm, runfile, tier)
        if settings_are_valid:
            found.append(algorithm.tier_fault(tier.bits, {**runfile.settings, **tier.settings}))
        faults += [f"tiers.{tier.name}{fault}" for fault in found if fault]
    return faults


def _tier_faults(algorithm: type[Algorithm], runfile: RunFile, tier: Tier) -> list[str]:
    """Check what a tier asks for against what the method does with tiers."""
    name, faults = algorithm.name, []
    takes_bits = algorithm.tiers_choose_bits or algorithm.tiers_choose_personal_bits
    wants_bits = tier.bits != FULL_PRECISION and not takes_bits
    if not algorithm.tiers_choose_models and (tier.variant or wants_bits):
        what = "variant has" if takes_bits else "variant and bits have"
        faults.append(
            f": {name} trains the global model on all devices, so {what} no place "
            f"here; run.global_variant names the model, and up_bits and down_bits make it small "
            f"on the wire"
        )
    wire = runfile.wire
    widths = {tier.up_bits, tier.down_bits, wire.up_bits, wire.down_bits} - {None, FULL_PRECISION}
    if algorithm.quantizes_uploads and (tier.up_bits or wire.up_bits) == FULL_PRECISION:
        faults.append(
            f": {name} is about what goes up in few bits; set wire.up_bits, or up_bits here, to 1 "
            f"to 8 (in full precision the method is fedavg)"
        )
    if algorithm.tiers_choose_bits and widths:
        faults.append(
            f": {name} sends each layer at the width it has, so up_bits and down_bits have no place"
        )
    return faults


def _aggregate_faults(runfile: RunFile) -> list[str]:
    """Check that the method and the size of its rounds go with how updates are combined."""
    name, aggregate = runfile.run.algorithm, runfile.aggregate
    algorithm = registry.find(name)
    if not algorithm.has_global_model:
        if aggregate.is_robust or aggregate.max_update_norm is not None:
            return [f"aggregate: {name} sends no updates, so nothing is combined; leave it out"]
        return []
    if not aggregate.is_robust:
        return []
    if not algorithm.takes_robust_rules:
        return [f'aggregate.rule: {name} needs its own mean; expected "mean"']
    if runfile.clients.minimum < FEWEST_ROBUST:
        return [
            f"clients.minimum: {runfile.clients.minimum}, and {aggregate.rule} says nothing about "
            f"fewer than {FEWEST_ROBUST} updates; raise it to {FEWEST_ROBUST} or more"
        ]
    return []
