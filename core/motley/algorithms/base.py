"""The two halves of a federated method, and what the engine hands to each.

An algorithm is written once and knows neither gRPC nor files. Its server half works on names,
numbers and numpy tiles and never imports torch; its client half (`train`, `evaluate`, `finish`)
may import torch inside the methods. Both halves are driven by the daemons and by a simulation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from motley.device import Hardware, Link
from motley.errors import TrainingError
from motley.models.units import UnitTable
from motley.plan import FULL_PRECISION, Plan
from motley.task import TaskSpec
from motley.wire import EncodedTensor, encode_dense
from motley.workload import LocalData, Scalar, Workload

if TYPE_CHECKING:
    from motley.privacy.ledger import TaskPrivacy

Array = npt.NDArray[np.generic]
FloatArray = npt.NDArray[np.float32]
Tensors = dict[str, Array]
"""Named tensors in the order of the model's unit table."""
Coefficient = float | Mapping[str, float]
"""Weight of a client's update: one number, or one for each unit."""


class Settings(BaseModel):
    """Base of every algorithm's settings: plain values, misspelt names refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def planned(self) -> dict[str, Scalar]:
        """Return what a plan says: all that has a value.

        Of settings that are `LATER` only those that differ from their default: a device of a
        version that does not know one refuses the plan, and would refuse all of them.
        """
        fields = type(self).model_fields.items()
        later = {name: field.default for name, field in fields if field.json_schema_extra == LATER}
        default = {name for name, value in later.items() if getattr(self, name) == value}
        return self.model_dump(exclude_none=True, exclude=default)


LATER: dict[str, Any] = {"later": True}
"""`json_schema_extra` of a setting that was added to a method that devices had already."""


@dataclass(frozen=True)
class Broadcast:
    """The global model as it reached the client."""

    encoded: Mapping[str, EncodedTensor]
    """By name; empty for a method without a global model."""

    @classmethod
    def of(cls, tensors: Mapping[str, Array]) -> Broadcast:
        """Return values as they arrive in full precision."""
        return cls({name: encode_dense(values) for name, values in tensors.items()})

    @cached_property
    def tensors(self) -> Tensors:
        """The values of all tensors, decoded once."""
        return {name: tensor.decode() for name, tensor in self.encoded.items()}

    def values(self, name: str) -> Array:
        """Return one tensor's values, without keeping them where nobody asked for all."""
        kept = self.__dict__.get("tensors")
        return self.encoded[name].decode() if kept is None else kept[name]


@dataclass(frozen=True, kw_only=True)
class UpdateFacts:
    """What an accepted update says of itself, as `Algorithm.measure` sees it."""

    samples: int
    """Training samples, capped by the run file."""
    metrics: Mapping[str, float]
    plan: Plan
    """What the client was asked for."""
    bits: Mapping[str, int] = field(default_factory=dict)
    """Width of each unit that came in planes, counted in magnitude planes."""
    distances: Mapping[str, float] = field(default_factory=dict)
    """L2 norm of each unit's values against the global state, where the method wants it."""


def sent_width(unit: str) -> str:
    """Return the name under which `measure` keeps the width of a unit as it came."""
    return f"bits.{unit}"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A client as frozen at the start of a run."""

    name: str
    tier: str
    variant: str
    units: UnitTable
    """Unit table of the member's variant."""
    bits: int = FULL_PRECISION
    """The tier's bit-width for quantized units."""
    up_bits: int = FULL_PRECISION
    down_bits: int = FULL_PRECISION
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    """The tier's settings, laid over the run's."""
    link: Link = field(default_factory=Link)
    """What the device had measured of its link and storage when the run began."""
    hardware: Hardware = field(default_factory=Hardware)
    """The same of its memory and processor."""
    index: int = 0
    """Its place among all clients of the run, in order of name."""
    clients: int = 1
    """How many clients the run has."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where a run stands when a round is planned."""

    round: int
    """1-based."""
    rounds: int
    seed: int
    """The run's seed."""
    deadline: float = 0.0
    """Seconds that a round may take."""
    last: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What `measure` said of the updates that the last closed training round counted, by client."""


@dataclass(frozen=True, kw_only=True)
class ClientContext:
    """What the client half works with."""

    task: TaskSpec
    workload: Workload
    data: LocalData
    device: str = "cpu"
    progress: Callable[[float], None] = lambda fraction: None
    """Called with the finished fraction of the task, 0 to 1."""
    privacy: TaskPrivacy | None = None
    """The device's privacy ledger, for this task; None where none is kept."""
    received: Broadcast | None = None
    """The global model as it reached the client; None where the task names none."""

    @property
    def plan(self) -> Plan:
        """The task's plan."""
        return self.task.plan


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Outcome of `Algorithm.train`."""

    update: Mapping[str, Array | EncodedTensor]
    """The client's values of the global model's tensors: execution takes deltas and encodes them;
    what a method has encoded itself goes as it is."""
    personal: Tensors | None = None
    """The new, still uncounted personal state."""
    samples: int
    """Training samples on the device."""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Outcome of `Algorithm.finish`: the model to keep, as it is stored packed."""

    variant: str
    model: Mapping[str, EncodedTensor]
    metrics: Mapping[str, float] = field(default_factory=dict)


class Algorithm(ABC):
    """One federated method. Subclasses are registered in `motley.algorithms.registry`."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised when updates of one version cannot be mixed with another's."""
    settings_type: ClassVar[type[Settings]]
    keeps_personal_state: ClassVar[bool] = False
    """Whether a client's model and centres stay on the device between rounds."""
    tiers_choose_models: ClassVar[bool] = False
    """Whether a tier's variant and bit-width apply: clients train models of their own."""
    tiers_choose_bits: ClassVar[bool] = False
    """Whether a tier's bit-width applies to the global model that all clients train."""
    quantizes_uploads: ClassVar[bool] = False
    """Whether the method is about what `up_bits` does: 32 would leave nothing of it."""
    encodings: ClassVar[tuple[str, ...]] = ()
    """Encodings that devices must know besides those that a run's bit-widths ask for."""
    tiers_choose_personal_bits: ClassVar[bool] = False
    """Whether a tier's bit-width applies to personal models that are all of the global variant."""
    personal_from_global: ClassVar[bool] = False
    """Whether a personal model is made anew from the global one, whenever it is asked for."""
    quantizes_ends: ClassVar[bool] = False
    """Whether low bit-widths apply to a model's first and last layer too."""
    has_global_model: ClassVar[bool] = True
    """False for training alone: rounds then synchronise nothing."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @classmethod
    def has_personal_models(cls) -> bool:
        """Return whether each client ends with a model of its own."""
        return cls.keeps_personal_state or cls.personal_from_global

    def evaluated_model(self, subject: str) -> str:
        """Return "global", "personal" or "both" for what a run file evaluates ("": by method)."""
        return subject or ("personal" if self.has_personal_models() else "global")

    @classmethod
    def configure(cls, values: Mapping[str, Scalar]) -> Algorithm:
        """Build from plain values; raises pydantic's ValidationError naming the field."""
        return cls(cls.settings_type.model_validate(dict(values)))

    @classmethod
    def tier_fault(cls, bits: int, settings: Mapping[str, Scalar]) -> str:
        """Return what is wrong with a tier's width as ".field: text", or ""."""
        return ""

    # --- server half -------------------------------------------------------------------------

    @property
    @abstractmethod
    def local_steps(self) -> int:
        """Local iterations of one round (the papers' τ)."""

    def begins_global(self, settings: Mapping[str, Scalar]) -> bool:
        """Return whether a client that has not trained yet has the global model for its own.

        `settings`: of its plan.
        """
        return False

    @property
    def wants_distances(self) -> bool:
        """Whether `measure` needs `UpdateFacts.distances`."""
        return False

    def select(
        self,
        candidates: Sequence[Member],
        count: int,
        rng: np.random.Generator,
        moment: Moment,
    ) -> list[Member]:
        """Choose `count` of the candidates (in order of name). Default: uniformly at random."""
        if count >= len(candidates):
            return list(candidates)
        chosen = sorted(rng.choice(len(candidates), size=count, replace=False).tolist())
        return [candidates[index] for index in chosen]

    def plan(self, member: Member, moment: Moment) -> Plan:
        """Choose variant, bit-widths and schedule for one client in one round."""
        quantized = member.units.quantized_units if member.bits != FULL_PRECISION else ()
        return Plan(
            variant=member.variant,
            bits=dict.fromkeys(quantized, member.bits),
            settings={**self.settings.planned(), **member.settings},
            up_bits=member.up_bits,
            down_bits=member.down_bits,
            iteration=(moment.round - 1) * self.local_steps,
            iterations=moment.rounds * self.local_steps,
        )

    def measure(self, facts: UpdateFacts) -> dict[str, float]:
        """Reduce an accepted update to the numbers that `coefficients` and `plan` need."""
        return {"samples": float(facts.samples)}

    def coefficients(self, scalars: Mapping[str, Mapping[str, float]]) -> Mapping[str, Coefficient]:
        """Return every counted client's weight. Default: equal weights."""
        return dict.fromkeys(scalars, 1.0)

    reducer: ClassVar[str] = "weighted_mean"
    """How a tile of all clients' values becomes one: a name in `fedserver.aggregation.reducers`."""

    takes_robust_rules: ClassVar[bool] = True
    """Whether a run file may put a median or trimmed mean, which know no weights, in its place."""

    def finish_tile(self, state: FloatArray, reduced: FloatArray) -> FloatArray:
        """Turn a reduced tile of a parameter into the new state's. Default: take it as it is."""
        return reduced

    # --- client half -------------------------------------------------------------------------

    @abstractmethod
    def train(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Trained:
        """Run one task's local steps from the broadcast and the personal state."""

    trains_together: ClassVar[bool] = False
    """Whether `train_together` is more than one client after the other. False in a subclass that
    has a `train` of its own, unless it has a `train_together` too or says True itself."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Let no class inherit a `train_together` that does not do what its own `train` does."""
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if "train" in own and not {"train_together", "trains_together"} & own.keys():
            cls.trains_together = False

    def kind_of(self, context: ClientContext, personal: Tensors | None) -> Hashable:
        """Return what, besides their plans, has to be equal of clients that train together."""
        return ()

    def joint_plan(self, plan: Plan) -> dict[str, Any]:
        """Return what of their plans has to be equal of clients that train together.

        How updates travel is each client's own.
        """
        return {k: v for k, v in plan.to_json().items() if k not in ("up_bits", "down_bits")}

    def train_together(
        self,
        contexts: Sequence[ClientContext],
        broadcasts: Sequence[Broadcast],
        personals: Sequence[Tensors | None],
    ) -> list[Trained | TrainingError] | None:
        """Run one task's local steps of clients with equal `joint_plan`s at once (simulations do).

        Returns what became of each, or None where these clients cannot train together: then each
        one trains alone. The results are those of `train` but for rounding.
        """
        return None

    @abstractmethod
    def model_for(
        self, context: ClientContext, subject: str, broadcast: Broadcast, personal: Tensors | None
    ) -> tuple[str, Tensors]:
        """Return (variant, tensors) of the model that an evaluation of `subject` is about."""

    @abstractmethod
    def finish(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Finished:
        """Return the final model as it is to be stored on the device, packed."""
