"""A model as an ExecuTorch program (`.pte`), checked against the model that it was made of.

Weights are in full precision: ExecuTorch has no operator that gathers them from centres when a
program is loaded, and gathering at every call would cost more than it saves. XNNPACK computes what
it can, ExecuTorch's portable operators the rest. A program takes one sample at a time: bounds of a
free first dimension did not survive XNNPACK's lowering (executorch 1.5).
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import torch

from motley.errors import ExportError
from motley.export.extras import need
from motley.export.predictions import (
    Agreement,
    Array,
    Floats,
    Run,
    check_close,
    outputs_of,
    runner,
)
from motley.export.report import Written
from motley.wire.durable import replacing
from motley.workload import Split

_WHAT, _INSTALL = "the format executorch", "executorch"


def write_executorch(path: Path, module: torch.nn.Module, split: Split) -> Written:
    """Write a model whole or not at all.

    Args:
        path: the file.
        module: the model in torch, with its values.
        split: samples to compare on, at least one.

    Raises:
        ExportError: it cannot be written, or ExecuTorch computes something else from it.
        MissingExtraError: executorch is not installed.
    """
    exir = need("executorch.exir", _WHAT, _INSTALL)
    xnnpack = need("executorch.backends.xnnpack.partition.xnnpack_partitioner", _WHAT, _INSTALL)
    own = outputs_of(runner(module), split)
    sample = torch.from_numpy(np.ascontiguousarray(split.inputs[:1]))
    logging.getLogger("torchao").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module.eval(), (sample,))
            lowered = exir.to_edge_transform_and_lower(
                program, partitioner=[xnnpack.XnnpackPartitioner()]
            )
            data = bytes(lowered.to_executorch().buffer)
        except Exception as error:  # of many kinds: whatever the model's code does when exported
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ExportError(f"the model cannot be written for ExecuTorch: {line[:300]}") from None
    agreement = Agreement.of(own, outputs_of(_session(data), split), split.targets)
    check_close("ExecuTorch", agreement)
    with replacing(path) as stream:
        stream.write(data)
    return Written(len(data), agreement)


def _session(data: bytes) -> Run:
    runtime = need("executorch.runtime", _WHAT, _INSTALL).Runtime.get()
    method = runtime.load_program(data).load_method("forward")

    def one(sample: Array) -> Floats:
        (outputs,) = method.execute([torch.from_numpy(np.ascontiguousarray(sample))])
        found: Floats = np.array(outputs.numpy())
        return found

    return lambda inputs: np.concatenate([one(inputs[n : n + 1]) for n in range(len(inputs))])
