"""Unit tables and first values of models without torch: named float32 arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from motley.errors import WorkloadError
from motley.models.units import Array, TensorInfo, UnitTable, check_units_used, listed, unit_of

if TYPE_CHECKING:
    from motley.workload import ArrayModel, Variant


def array_table(variant: Variant, arrays: ArrayModel) -> UnitTable:
    """Return the table of a variant of arrays: low bit-widths apply to what `quantized` names.

    Raises:
        WorkloadError: a name in `quantized` or `units` is not one of the arrays'.
    """
    named, units = variant.quantized or (), variant.units or {}
    unknown = [name for name in named if name not in arrays.shapes]
    if unknown:
        raise WorkloadError(
            f"tensor {unknown[0]!r}, named as quantized, does not exist; there are "
            f"{listed(list(arrays.shapes))}"
        )
    check_units_used(arrays.shapes, units)
    return UnitTable(
        tuple(
            TensorInfo(name, tuple(shape), "float32", unit_of(name, units), name in named)
            for name, shape in arrays.shapes.items()
        )
    )


def drawn_arrays(arrays: ArrayModel, seed: int) -> dict[str, Array]:
    """Return freshly drawn float32 values, in order of the table.

    Raises:
        WorkloadError: what was drawn does not fit the shapes.
    """
    drawn = arrays.draw(np.random.default_rng(seed))
    values: dict[str, Array] = {}
    for name, shape in arrays.shapes.items():
        found = drawn.get(name)
        if found is None or found.shape != tuple(shape) or found.dtype != np.float32:
            what = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise WorkloadError(
                f"{what} was drawn for tensor {name!r}; expected float32 {list(shape)}"
            )
        values[name] = found
    return values
