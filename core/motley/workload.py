"""What is trained: a model family, the client's local data, loss and metrics.

A workload is the user's plug-in. A run names it; the owner of each machine maps the name to
`module:object` (`--workload NAME=module:object`, or an installed entry point in the group
`motley.workloads`), so a server can never choose what a device imports. `docs/workloads.md`
holds a complete example.

Only `build`, `loss` and `metrics` touch torch; this module imports it for type checking alone,
so that a server can read names and versions without it. An `ArrayWorkload` needs no torch at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt

from motley.errors import DataError, WorkloadError

if TYPE_CHECKING:
    import torch

Scalar = bool | int | float | str


@dataclass(frozen=True)
class DataSpec:
    """Where a device's data lies: the text after `--data`, `LOCATION[?option=value&...]`.

    The location is a path, or a word that the workload knows; the workload defines the options.

    >>> DataSpec.parse("/data/mnist?classes=4&client=2").options
    {'classes': '4', 'client': '2'}
    """

    location: str
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> DataSpec:
        """Read `LOCATION[?option=value&...]`; raise DataError when an option has no value."""
        location, _, query = text.partition("?")
        try:
            pairs = parse_qsl(query, strict_parsing=True) if query else []
        except ValueError as error:
            raise DataError(
                f"data option {query!r} is not option=value&option=value: {error}"
            ) from None
        return cls(location, dict(pairs))


@dataclass(frozen=True)
class Split:
    """Samples: `inputs` [N, ...] (float32 or an integer type) and `targets` [N, ...]."""

    inputs: npt.NDArray[np.generic]
    targets: npt.NDArray[np.generic]

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class LocalData:
    """What one device trains on and is tested on; the two never overlap."""

    train: Split
    test: Split


@dataclass(frozen=True)
class ArrayModel:
    """A model that is float32 arrays and no torch module."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each tensor, in order; a name up to its last dot is its unit."""
    draw: Callable[[np.random.Generator], Mapping[str, npt.NDArray[np.float32]]]
    """Makes the initial values of all tensors."""


class Augmentation(Protocol):
    """Changes training samples at random, anew each time that they are drawn.

    What is drawn follows from the run's seed, the client and the number of the batch, so that a
    task that is done again trains on the same samples. Noisy gradients ("ldp-sgd") are the
    exception: there it follows from a secret of the device, and samples are changed one by one.
    """

    def draw(self, generator: np.random.Generator, samples: int) -> npt.NDArray[np.int64]:
        """Return what is drawn for each sample of a batch, [samples, ...]; samples may be 0.

        Each row alike and independent of the others.
        """

    def apply(self, inputs: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Return inputs [B, ...], changed as `drawn` [B, ...] says, on the device that both are on.

        Samples may be of many clients: each depends on itself and its own row alone, and keeps its
        shape. Inputs stay as they are.
        """


def _no_module() -> torch.nn.Module:
    raise WorkloadError(
        "this model variant is arrays and no torch module; only fedavg and fedpaq train those, "
        "without privacy: take one of them, or a workload whose variants build a module"
    )


@dataclass(frozen=True)
class Variant:
    """One model size of a workload."""

    build: Callable[[], torch.nn.Module] = _no_module
    """Makes the model with freshly drawn parameters (seeded by the caller)."""
    quantized: tuple[str, ...] | None = None
    """Names of the tensors that low bit-widths apply to. None: every parameter of two or more
    dimensions but the first and the last (QuPeD, section 5), or those too where a method takes
    them (FedMPQ)."""
    full_precision: tuple[str, ...] = ()
    """Where `quantized` is None: names of tensors that stay in full precision all the same."""
    units: Mapping[str, str] | None = None
    """Units larger than a layer, by path in the module: {"stage1.0": "stage1.0"} makes one unit of
    all that lies in that block, {"bn1": "conv1"} puts `bn1` into the unit of `conv1`. The longest
    path that fits a tensor counts; where none fits, and without this, each layer is a unit."""
    arrays: ArrayModel | None = None
    """Instead of `build`: the model of an `ArrayWorkload`."""


class Workload(ABC):
    """Base of all workloads. The constructor takes plain values from the run file."""

    version: ClassVar[int] = 1
    """Raised when an update of one version cannot be mixed with another's."""
    batchable: ClassVar[bool] = True
    """Whether a simulation may train many clients of it at once."""
    augmentation: Augmentation | None = None
    """How training samples are changed each time they are drawn; None: not at all. Tests and scores
    see them as they are, and an `ArrayWorkload` changes its own."""

    @abstractmethod
    def variants(self) -> Mapping[str, Variant]:
        """Return the model variants by name; the first is the default of a run."""

    @abstractmethod
    def load(self, spec: DataSpec) -> LocalData:
        """Read the device's own data.

        Raises:
            DataError: the data is missing or an option is not known; says what was expected.
        """

    def held_out(self, spec: DataSpec) -> Split:
        """Read a test set for the server; only needed when a run file asks for one."""
        return self.load(spec).test

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each sample, [B]. Default: cross-entropy over `outputs` [B, C]."""
        import torch

        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return metrics of each sample, each [B]; reports average them. Default: accuracy."""
        return {"accuracy": (outputs.argmax(dim=1) == targets).float()}


class ArrayWorkload(Workload):
    """A workload that trains arrays with code of its own; no torch is imported for it.

    Its variants have `arrays`. FedAvg and FedPAQ train it, without privacy.
    """

    @abstractmethod
    def fit(
        self,
        tensors: dict[str, npt.NDArray[np.generic]],
        samples: Split,
        batches: Iterable[npt.NDArray[np.int64]],
        learning_rate: float,
    ) -> float:
        """Train `tensors` in place, a step for each batch of sample indices; return the mean loss.

        Draw from nothing but the batches: the same task gives the same model.
        """

    @abstractmethod
    def score(
        self, tensors: Mapping[str, npt.NDArray[np.generic]], samples: Split
    ) -> Mapping[str, float]:
        """Return the model's metrics over samples."""
