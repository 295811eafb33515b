"""The unit table: every tensor of a model, and the layer it belongs to.

A *unit* is what a plan gives a bit-width to and what a client sends or keeps: one layer, named
by its path in the module (`conv1`, `blocks.0.conv2`), or a block of layers where the variant says
so (`Variant.units`). Both ends of the wire hold the same table.

torch is imported where a module is touched, never at the top: a server that only reads
tables needs none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from motley.errors import UpdateError, WorkloadError
from motley.wire.table import DTYPES, TensorRow, TensorTable

if TYPE_CHECKING:
    import torch

    from motley.workload import Variant

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a model."""

    name: str
    """Its key in the module's state_dict, e.g. `conv1.weight`."""
    shape: tuple[int, ...]
    dtype: str
    """numpy's name, e.g. `float32`."""
    unit: str
    """The layer or block that owns it, e.g. `conv1`."""
    quantized: bool
    """Whether low bit-widths apply to it."""
    parameter: bool = True
    """Whether it is trained; False for buffers such as BatchNorm's running mean."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def takes_wire_bits(self) -> bool:
        """Whether `up_bits` and `down_bits` apply to it, and with them differences.

        Buffers travel as values: a step is as wide as a tensor's range allows, and a running
        variance far below it would end below zero.
        """
        return self.parameter and self.dtype == "float32"


@dataclass(frozen=True)
class UnitTable:
    """All tensors of a model in the order of its state_dict."""

    rows: tuple[TensorInfo, ...]

    def __post_init__(self) -> None:
        if len(self._by_name) != len(self.rows):
            raise WorkloadError("a unit table names a tensor twice; expected each exactly once")

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[TensorInfo]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> TensorInfo:
        """Return the tensor of that name; raise WorkloadError when the model has none."""
        if name not in self._by_name:
            raise WorkloadError(f"no tensor is called {name!r}; there are {listed(self.names)}")
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, TensorInfo]:
        return {row.name: row for row in self.rows}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, in order."""
        return tuple(row.name for row in self.rows)

    @cached_property
    def units(self) -> tuple[str, ...]:
        """Names of all units, in order of their first tensor."""
        return tuple(dict.fromkeys(row.unit for row in self.rows))

    @cached_property
    def quantized_units(self) -> tuple[str, ...]:
        """Units that hold a tensor to which low bit-widths apply, in order."""
        return tuple(self.quantized_sizes)

    @cached_property
    def quantized_sizes(self) -> dict[str, int]:
        """Number of weights of each unit to which low bit-widths apply, in order."""
        sizes: dict[str, int] = {}
        for row in self.rows:
            if row.quantized:
                sizes[row.unit] = sizes.get(row.unit, 0) + row.size
        return sizes

    @property
    def parameters_count(self) -> int:
        """Number of trained values; buffers do not count."""
        return sum(row.size for row in self.rows if row.parameter)

    @cached_property
    def tensor_table(self) -> TensorTable:
        """Names, shapes and dtypes alone: what payloads are written and read with."""
        return TensorTable(TensorRow(row.name, row.shape, row.dtype) for row in self.rows)

    def tensors_of(self, unit: str) -> tuple[TensorInfo, ...]:
        """Return a unit's tensors in order; raise WorkloadError when there is no such unit."""
        found = tuple(row for row in self.rows if row.unit == unit)
        if not found:
            raise WorkloadError(f"no unit is called {unit!r}; there are {listed(self.units)}")
        return found

    def to_json(self) -> str:
        """Return the table as one line of JSON that `from_json` reads back to an equal table."""
        return json.dumps([asdict(row) for row in self.rows], separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> UnitTable:
        """Read a table; raise WorkloadError when the text is not one."""
        try:
            return cls(tuple(_row(entry) for entry in json.loads(text)))
        except (ValueError, TypeError, KeyError) as error:
            raise WorkloadError(
                f"not a unit table: {error!r}; expected a JSON list of "
                "{name, shape, dtype, unit, quantized, parameter}"
            ) from None


def variant_table(variant: Variant, *, ends: bool = False) -> UnitTable:
    """Return the unit table of a variant; torch's global generator is left as it was."""
    if variant.arrays is not None:
        from motley.models.arrays import array_table

        return array_table(variant, variant.arrays)
    import torch

    with torch.random.fork_rng(devices=[]):
        module = variant.build()
    return unit_table(
        module,
        variant.quantized,
        ends=ends,
        full_precision=variant.full_precision,
        units=variant.units,
    )


def unit_table(
    module: torch.nn.Module,
    quantized: tuple[str, ...] | None = None,
    *,
    ends: bool = False,
    full_precision: tuple[str, ...] = (),
    units: Mapping[str, str] | None = None,
) -> UnitTable:
    """Return the table of a module: each tensor of its state_dict once, in that order.

    Args:
        module: the model; its values are not read.
        quantized: names of the parameters that low bit-widths apply to. None: every parameter
            of two or more dimensions but the first and the last (QuPeD, arXiv 2107.13892,
            section 5: first and last layer stay in full precision).
        ends: whether None takes in the first and the last too (FedMPQ does).
        full_precision: names that None leaves out.
        units: unit by path in the module (`Variant.units`); None: each layer is a unit.

    Raises:
        WorkloadError: a name of `quantized` is not a floating-point parameter of the module, a
            path of `units` holds no tensor, or the module holds one of a type that cannot be sent.
    """
    tensors = _state(module)
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    if quantized is None:
        chosen = _inner_matrices(module, tensors, ends=ends) - set(full_precision)
    else:
        chosen = set(_checked_quantized(quantized, tensors, parameters))
    _check_not_shared(chosen, tensors)
    check_units_used(tensors, units or {})
    return UnitTable(
        tuple(
            TensorInfo(
                name=name,
                shape=tuple(tensor.shape),
                dtype=_dtype_name(name, tensor),
                unit=unit_of(name, units or {}),
                quantized=name in chosen,
                parameter=name in parameters,
            )
            for name, tensor in tensors.items()
        )
    )


def unit_of(name: str, units: Mapping[str, str]) -> str:
    """Return the unit of a tensor under `Variant.units`.

    >>> unit_of("stage1.0.conv1.weight", {"stage1.0": "stage1.0", "bn1": "conv1"})
    'stage1.0'
    """
    path = _path_of(name, units)
    # A tensor of the root module has no layer: it is a unit of its own.
    return units[path] if path else name.rpartition(".")[0] or name


def fresh_tensors(variant: Variant, seed: int) -> dict[str, Array]:
    """Return freshly drawn values of a variant's tensors, in order of its unit table.

    The same seed gives the same values; torch's global generator is left as it was.

    Raises:
        WorkloadError: what a variant of arrays draws does not fit its shapes.
    """
    if variant.arrays is not None:
        from motley.models.arrays import drawn_arrays

        return drawn_arrays(variant.arrays, seed)
    import torch

    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would reseed the accelerators too, which are not forked here.
        torch.default_generator.manual_seed(seed)
        module = variant.build()
    return {name: tensor.cpu().numpy().copy() for name, tensor in _state(module).items()}


def load_tensors(module: torch.nn.Module, tensors: Mapping[str, Array]) -> None:
    """Copy values into a module, wherever its tensors lie. Nothing is changed on an error.

    Args:
        module: the model; its state_dict names what is expected.
        tensors: exactly those names, each of the same shape; a type is converted within its
            kind (float16 to float32, but not float32 to int64).

    Raises:
        UpdateError: a tensor is missing, unknown, of another shape or of another kind.
    """
    import torch

    targets = _state(module)
    missing = [name for name in targets if name not in tensors]
    unknown = [name for name in tensors if name not in targets]
    if missing or unknown:
        raise UpdateError(
            f"tensors do not fit the model: missing {listed(missing)}; "
            f"unknown {listed(unknown)}; expected {listed(list(targets))}"
        )
    for name, target in targets.items():
        _check_fit(name, target, tensors[name])
    for name, target in targets.items():
        # A copy: torch refuses views of other byte orders and warns at read-only ones.
        values = np.array(tensors[name], dtype=_dtype_name(name, target), order="C")
        target.copy_(torch.from_numpy(values))


def read_tensors(module: torch.nn.Module) -> dict[str, Array]:
    """Return copies of a module's tensors, in order, on the CPU."""
    return {name: value.detach().cpu().numpy().copy() for name, value in _state(module).items()}


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the detached tensors of a module; raise WorkloadError for state that is none."""
    import torch

    state: dict[str, torch.Tensor] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise WorkloadError(
                f"state {name!r} of the model is a {type(value).__name__}; expected tensors alone"
            )
        state[name] = value.detach()
    return state


def _path_of(name: str, units: Mapping[str, str]) -> str:
    """Return the longest path in `units` that a tensor lies under; "" when there is none."""
    path = name
    while path and path not in units:
        path = path.rpartition(".")[0]
    return path


def check_units_used(names: Iterable[str], units: Mapping[str, str]) -> None:
    """Raise WorkloadError where a path of `units` holds none of the tensors."""
    used = {_path_of(name, units) for name in names}
    for path in units:
        if path not in used:
            layers = sorted({name.rpartition(".")[0] or name for name in names})
            raise WorkloadError(
                f"path {path!r} in Variant.units holds no tensor of the model, or none that a "
                f"longer path leaves to it; its layers are {listed(layers)}"
            )


def _dtype_name(name: str, tensor: torch.Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise WorkloadError(f"tensor {name!r} is {dtype}; expected one of {', '.join(DTYPES)}")
    return dtype


def _inner_matrices(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, ends: bool
) -> set[str]:
    """Return the trained parameters of two or more dimensions, with or without first and last."""
    trains = dict(module.named_parameters(remove_duplicate=False))
    matrices = [name for name, tensor in tensors.items() if name in trains and tensor.dim() >= 2]
    return {name for name in (matrices if ends else matrices[1:-1]) if trains[name].requires_grad}


def _checked_quantized(
    quantized: tuple[str, ...], tensors: Mapping[str, torch.Tensor], parameters: set[str]
) -> tuple[str, ...]:
    usable = [
        name for name, t in tensors.items() if name in parameters and t.dtype.is_floating_point
    ]
    for name in quantized:
        if name not in usable:
            what = "is not a floating-point parameter" if name in tensors else "does not exist"
            raise WorkloadError(
                f"tensor {name!r}, named as quantized, {what}; there are {listed(usable)}"
            )
    return quantized


def _check_not_shared(chosen: set[str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse low bit-widths for a tensor of two names: each would be stored its own way."""
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            names.setdefault(tensor.data_ptr(), []).append(name)
    for shared in names.values():
        if len(shared) > 1 and chosen & set(shared):
            raise WorkloadError(
                f"tensors {' and '.join(shared)} share their values, so they cannot have low "
                f"bit-widths; name the tensors to quantize in Variant.quantized without them"
            )


def _check_fit(name: str, target: torch.Tensor, values: Array) -> None:
    if tuple(np.shape(values)) != tuple(target.shape):
        raise UpdateError(
            f"tensor {name!r} has shape {list(np.shape(values))}; expected {list(target.shape)}"
        )
    dtype = _dtype_name(name, target)
    if not np.can_cast(np.asarray(values).dtype, np.dtype(dtype), casting="same_kind"):
        raise UpdateError(
            f"tensor {name!r} is {np.asarray(values).dtype}; expected {dtype} or a type of its kind"
        )


def _row(entry: object) -> TensorInfo:
    """Return the row that a JSON object describes; raise TypeError or ValueError otherwise."""
    if not isinstance(entry, dict):
        raise TypeError(f"row {entry!r} is not an object")
    row = TensorInfo(**{**entry, "shape": tuple(entry.get("shape", ()))})
    flags, texts = (row.quantized, row.parameter), (row.name, row.unit, row.dtype)
    if not all(isinstance(flag, bool) for flag in flags):
        raise TypeError(f"quantized and parameter of {row.name!r} are not both true or false")
    if not all(isinstance(text, str) and text for text in texts):
        raise TypeError(f"name, unit and dtype of {row.name!r} are not all text")
    if not all(type(length) is int and length >= 0 for length in row.shape):
        raise ValueError(f"shape {row.shape} of {row.name!r} is not a list of lengths")
    if row.dtype not in DTYPES:
        raise ValueError(f"dtype {row.dtype!r} of {row.name!r} is not one of {', '.join(DTYPES)}")
    return row


def listed(names: Sequence[str]) -> str:
    """Return names as text, cut where a list would fill the screen."""
    shown = ", ".join(names[:20]) or "none"
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown
