"""A torch model as an ONNX graph, its tensors as initializers under their own names.

torch's TorchScript exporter traces it, which needs no library beside `onnx` and is in every torch
that this project takes (docs/adr/0018-onnx-by-tracing.md). Nothing is folded, so that each tensor
stays what it is in the model.
"""

from __future__ import annotations

import inspect
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from motley.errors import ExportError
from motley.export.extras import need
from motley.export.predictions import Array

INPUT, OUTPUT = "input", "output"
TRACED_OPSET = 18
OPSET = 21
"""The first with 4-bit types."""
IR_VERSION = 10
"""What files of that opset have; runtimes refuse newer ones than they know."""


def trace(module: torch.nn.Module, inputs: Array) -> Any:
    """Return the graph (onnx.ModelProto) of a module in evaluation mode.

    Args:
        module: takes one tensor and returns one.
        inputs: samples [N, ...] to trace with, N >= 1. N is free in the graph, other lengths are
            not.

    Raises:
        ExportError: the module cannot be traced, or uses what ONNX has no operator for.
        MissingExtraError: onnx is not installed.
    """
    onnx = need("onnx", "the format onnx")
    need("onnx.version_converter", "the format onnx")
    # Two samples: a length of 1 might be taken for one that is broadcast.
    sample = torch.from_numpy(np.repeat(np.ascontiguousarray(inputs[:1]), 2, axis=0))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        target = Path(folder) / "traced.onnx"
        warnings.simplefilter("ignore")  # about the exporter's age, and what it cannot be sure of
        try:
            torch.onnx.export(
                module.eval(),
                (sample,),
                str(target),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
                opset_version=TRACED_OPSET,
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
                **_tracing(),
            )
            graph = onnx.version_converter.convert_version(onnx.load(target), OPSET)
        except Exception as error:  # of many kinds: whatever the model's code does when traced
            raise ExportError(_why(error)) from None
    graph.ir_version = IR_VERSION
    if len(graph.graph.output) != 1:
        raise ExportError(f"the model returns {len(graph.graph.output)} tensors; expected one")
    return graph


def _tracing() -> dict[str, Any]:
    """Return the argument that asks for tracing, where torch has another way too."""
    known = inspect.signature(torch.onnx.export).parameters
    return {"dynamo": False} if "dynamo" in known else {}


def _why(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (
        f"the model cannot be written as ONNX: {lines[0][:300]}. It has to take one tensor, return "
        f"one, and use operators that ONNX has; a packed file (--format packed) needs none of that"
    )
