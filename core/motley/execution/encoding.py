"""An update's values as its plan encodes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from motley.algorithms.base import Array, Broadcast
from motley.models.units import UnitTable
from motley.plan import FULL_PRECISION
from motley.prune.masks import UploadMasks
from motley.seeding import numpy_generator
from motley.task import TaskSpec
from motley.wire import EncodedTensor, encode_dense, encode_masked, quantize_uniform


def encode_update(
    task: TaskSpec,
    table: UnitTable,
    update: Mapping[str, Array | EncodedTensor],
    received: Broadcast,
) -> Iterator[tuple[str, EncodedTensor]]:
    """Yield the update's tensors as the plan encodes them: values, or quantized deltas.

    Of a sparse upload the values under the mask alone, which the server makes by itself. Dense
    tensors share the update's memory.
    """
    masks = UploadMasks.of(task.plan, task.run_seed, task.round, task.client)
    for name, values in update.items():
        if isinstance(values, EncodedTensor):
            yield name, values
            continue
        row = table[name]
        is_delta = task.plan.sends_delta_of(row)
        sent = np.subtract(values, received.values(name)) if is_delta else values
        mask = None if masks is None else masks(row)
        if mask is None:
            yield name, _encode_values(task, name, sent, quantized=is_delta)
            continue
        kept = _encode_values(task, name, mask.take(sent), quantized=is_delta)
        yield name, encode_masked(kept, mask, row.shape, known=True)


def _encode_values(task: TaskSpec, name: str, values: Array, *, quantized: bool) -> EncodedTensor:
    if not quantized or task.plan.up_bits == FULL_PRECISION:
        return encode_dense(values, copy=False)
    rng = numpy_generator(task.run_seed, "encode", task.round, task.client, name)
    return quantize_uniform(values, task.plan.up_bits, rng)
