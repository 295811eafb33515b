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

SUFFIX = ".safetensors"


def read_pretrained(path: Path, variant: Variant) -> dict[str, Array]:
    """Return the tensors of a file, in the order and types of a variant's model.

    Args:
        path: a safetensors file with exactly the names and shapes of the model's state_dict, in
            floating-point types of any width.
        variant: builds a torch module.

    Raises:
        MissingExtraError: safetensors is not installed.
        WorkloadError: the file is not whole, does not fit the model, or holds a value that is not
            finite.
    """
    import torch

    library = need("safetensors.torch", "a start from a safetensors file")
    if variant.arrays is not None:
        raise WorkloadError(f"{path} starts models of torch; this workload's models are arrays")
    try:
        read = library.load_file(path)
    except Exception as error:  # the library's own, and OSError
        raise WorkloadError(f"{path} is no whole safetensors file: {error}") from None
    wide = {
        n: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for n, t in read.items()
    }
    module = variant.build()
    try:
        load_tensors(module, {name: tensor.numpy() for name, tensor in wide.items()})
    except MotleyError as error:
        raise WorkloadError(f"{path}: {error}") from None
    found = read_tensors(module)
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise WorkloadError(f"{path}: tensor {name!r} holds a value that is not finite")
    return found
