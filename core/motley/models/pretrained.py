"""Initial values from a safetensors file, as other programs write pretrained models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from motley.errors import MotleyError, WorkloadError
from motley.export.extras import need
from motley.models.units import Array, load_tensors, read_tensors

if TYPE_CHECKING:
    from motley.workload import Variant


def read_pretrained(path: Path, variant: Variant) -> dict[str, Array]:
    """Return the tensors of a file, in the order and types of a variant's model.

    Args:
        path: a safetensors file, whatever it is called, with exactly the names and shapes of the
            model's state_dict, in floating-point types of any width.
        variant: builds a torch module.

    Raises:
        MissingExtraError: safetensors is not installed.
        OSError: the disk refused to read it.
        WorkloadError: the file is not whole, does not fit the model, or holds a value that is not
            finite or too large for the model's type.
    """
    if variant.arrays is not None:
        raise WorkloadError(
            f"run.init: {path} is no payload, and this workload's models are arrays, which start "
            f"from a payload alone, as `fedserver fetch` writes it"
        )
    library = need("safetensors", "a start from a safetensors file")
    import torch
    from safetensors.torch import load_file

    try:
        read = load_file(path)
    except library.SafetensorError as error:
        raise WorkloadError(
            f"run.init: {path} is neither a payload nor a whole safetensors file ({error}); a "
            f"PyTorch checkpoint is to be converted first (docs/workloads.md)"
        ) from None
    kept = (torch.float32, torch.float64)
    wide = {
        name: t.float() if t.is_floating_point() and t.dtype not in kept else t
        for name, t in read.items()
    }
    module = variant.build()
    try:
        with np.errstate(over="ignore"):
            load_tensors(module, {name: tensor.numpy() for name, tensor in wide.items()})
    except MotleyError as error:
        raise WorkloadError(f"run.init: {path}: {error}") from None
    found = read_tensors(module)
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise WorkloadError(
                f"run.init: {path}: tensor {name!r} holds a value that is not finite, or too large "
                f"for {values.dtype}"
            )
    return found
