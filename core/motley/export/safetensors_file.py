"""A model's tensors in full precision in the safetensors format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from motley.export.extras import need
from motley.export.packed import PackedModel
from motley.wire.durable import replacing


def write_safetensors(path: Path, model: PackedModel) -> int:
    """Write decoded tensors whole or not at all; return the bytes of the file.

    The description is in the file's metadata, under `motley.about`.

    Raises:
        MissingExtraError: safetensors is not installed.
        OSError: the file cannot be written.
    """
    library = need("safetensors.numpy", "the format safetensors")
    values = {name: np.ascontiguousarray(value) for name, value in model.values().items()}
    about = model.about.encode().decode()
    data: bytes = library.save(values, metadata={"motley.about": about})
    with replacing(path) as stream:
        stream.write(data)
    return len(data)
