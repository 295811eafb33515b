"""A packed model as an ONNX file, checked against the model that it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from motley.errors import ExportError, PackedModelError
from motley.export import onnx_weights
from motley.export.about import About
from motley.export.extras import need
from motley.export.onnx_graph import INPUT, trace
from motley.export.packed import PackedModel
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

MOST_BYTES = 2**31 - 1
"""What one protobuf message can hold."""


def write_onnx(path: Path, model: PackedModel, module: torch.nn.Module, split: Split) -> Written:
    """Write a model as ONNX whole or not at all.

    Args:
        path: the file.
        model: the packed model.
        module: the same model in torch, with its values.
        split: samples to compare on, at least one.

    Raises:
        ExportError: it cannot be written, or onnxruntime computes something else from it.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    onnx = need("onnx", "the format onnx")
    need("onnxruntime", "the format onnx")
    own = outputs_of(runner(module), split)
    graph = trace(module, split.inputs)
    plain = onnx_weights.store(graph, model, model.values())
    if graph.ByteSize() > MOST_BYTES:
        raise ExportError(f"a graph of {graph.ByteSize()} bytes; one ONNX file holds {MOST_BYTES}")
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the graph that was made is no valid ONNX: {error}") from None
    data = graph.SerializeToString()
    agreement = _compared(session(data), own, split)
    with replacing(path) as stream:
        stream.write(data)
    return Written(len(data), agreement, plain)


def _compared(run: Run, own: Floats, split: Split) -> Agreement:
    """Compare in passes of many samples and of one; raise ExportError where outputs differ."""
    one = outputs_of(run, Split(split.inputs[:1], split.targets[:1]))
    agreement = Agreement.of(own, outputs_of(run, split), split.targets)
    check_close("onnxruntime", agreement, Agreement.of(own[:1], one, split.targets[:1]))
    return agreement


EXPAND_ONCE = ("session.disable_quant_qdq", "1")
"""onnxruntime's setting that lets it dequantize weights when it opens a file. Without it it keeps
them small, for operators on integers that these graphs do not use, and dequantizes in each call."""


def session(source: bytes | Path, threads: int = 0, *, expand_once: bool = True) -> Run:
    """Open an ONNX file or its bytes in onnxruntime, on the processor, as a function of arrays.

    Args:
        source: the file, or what is in it.
        threads: of one operator; 0: onnxruntime's choice.
        expand_once: whether weights are dequantized once, instead of in each call.

    Raises:
        ExportError: onnxruntime cannot run it.
        MissingExtraError: onnxruntime is not installed.
    """
    runtime = need("onnxruntime", "running ONNX")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors alone: advice about a user's graph helps nobody here
    options.intra_op_num_threads = threads
    if expand_once:
        options.add_session_config_entry(*EXPAND_ONCE)
    try:
        opened = runtime.InferenceSession(
            source if isinstance(source, bytes) else str(source),
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # onnxruntime's errors have no class of their own in common
        raise ExportError(f"onnxruntime cannot open the model: {_first_line(error)}") from None

    def run(inputs: Array) -> Floats:
        try:
            return np.asarray(opened.run(None, {INPUT: np.ascontiguousarray(inputs)})[0])
        except Exception as error:
            raise ExportError(f"onnxruntime cannot run the model: {_first_line(error)}") from None

    return run


def about_of(path: Path) -> About:
    """Return the description in an exported ONNX file; raise PackedModelError without one."""
    onnx: Any = need("onnx", "reading ONNX")
    try:
        graph = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors differ by version
        raise PackedModelError(
            f"{path} is no ONNX file, or damaged: {_first_line(error)}"
        ) from None
    key = f"{onnx_weights.PREFIX}about"
    found = [entry.value for entry in graph.metadata_props if entry.key == key]
    if not found:
        raise PackedModelError(
            f"{path} does not say which model it is ({key} is missing); expected a file that "
            f"`fedclient export --format onnx` wrote"
        )
    return About.decode(found[0].encode())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
