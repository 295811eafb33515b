"""Weights of an ONNX graph in the form that they have in a packed model.

| in the packed model | in the graph |
|---|---|
| `codebook` | indices (uint4 up to 16 centres, else uint8), cast, and gathered from the centres |
| `uniform`, planes | DequantizeLinear of int4, int8 or int16, the narrowest that the codes fit |
| `uniform`, offset | DequantizeLinear of uint4 or uint8, and the low end added |
| `dense` fp16, bf16 | cast to fp32 |
| all else | fp32 |

Each gives the very bits of the decoded tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from motley.export.extras import need
from motley.export.packed import PackedModel
from motley.wire import Codebook, Dense, EncodedTensor, UniformOffset, UniformPlanes

Array = npt.NDArray[np.generic]
MOST_IN_4_BITS = 16
PREFIX = "motley."
"""Of the metadata's keys."""


def store(graph: Any, model: PackedModel, values: Mapping[str, Array]) -> tuple[str, ...]:
    """Put the model's tensors into a graph (onnx.ModelProto) as they are packed, in place.

    Args:
        graph: from `onnx_graph.trace`; an initializer that has a tensor's name and values is that.
        model: the packed model.
        values: its decoded tensors.

    Returns:
        names of tensors that are packed and are not stored so: those that tracing changed or left
        out, e.g. because the model does not use them.
    """
    onnx = need("onnx", "the format onnx")
    initializers = {one.name: one for one in graph.graph.initializer}
    parts: list[Any] = []
    nodes: list[Any] = []
    missed = []
    for name, tensor in model.tensors.items():
        found = initializers.get(name)
        form = _Form(onnx, name)
        if not form.take(tensor):
            continue
        if found is None or not np.array_equal(onnx.numpy_helper.to_array(found), values[name]):
            missed.append(name)
            continue
        graph.graph.initializer.remove(found)
        parts += form.initializers
        nodes += form.nodes
    graph.graph.initializer.extend(parts)
    rest = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*nodes, *rest])
    _describe(onnx, graph, model)
    return tuple(missed)


def _describe(onnx: Any, graph: Any, model: PackedModel) -> None:
    about = model.about
    graph.producer_name = "motley"
    onnx.helper.set_model_props(graph, {f"{PREFIX}about": about.encode().decode()})


class _Form:
    """The initializers and nodes that stand for one tensor; the last node's output has its name."""

    def __init__(self, onnx: Any, name: str) -> None:
        self._onnx, self._name = onnx, name
        self.initializers: list[Any] = []
        self.nodes: list[Any] = []

    def take(self, tensor: EncodedTensor) -> bool:
        """Write the form of a tensor; return False where it is plain fp32 or another whole type."""
        encoding = tensor.encoding
        if isinstance(encoding, Codebook):
            self._codebook(tensor)
        elif isinstance(encoding, UniformPlanes):
            self._planes(tensor)
        elif isinstance(encoding, UniformOffset):
            self._offset(tensor, encoding.bits)
        elif isinstance(encoding, Dense) and encoding.kind in ("float16", "bfloat16"):
            self._half(tensor, encoding)
        else:
            return False
        return True

    def _codebook(self, tensor: EncodedTensor) -> None:
        types = self._onnx.TensorProto
        narrow = tensor.centres.size <= MOST_IN_4_BITS
        codes = self._integers(tensor.codes(), types.UINT4 if narrow else types.UINT8)
        centres = self._floats("centres", tensor.centres)
        self._node("Cast", [codes], f"{self._name}.indices", to=types.INT32)
        self._node("Gather", [centres, f"{self._name}.indices"], self._name)

    def _planes(self, tensor: EncodedTensor) -> None:
        types, codes = self._onnx.TensorProto, tensor.codes()
        low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
        kind = types.INT16
        if low >= -8 and high <= 7:
            kind = types.INT4
        elif low >= -128 and high <= 127:
            kind = types.INT8
        step = self._floats("step", tensor.scale[1])
        self._node("DequantizeLinear", [self._integers(codes, kind), step], self._name)

    def _offset(self, tensor: EncodedTensor, bits: int) -> None:
        types, (low, step) = self._onnx.TensorProto, tensor.scale
        codes = self._integers(tensor.codes(), types.UINT4 if bits <= 4 else types.UINT8)
        scaled = f"{self._name}.scaled"
        self._node("DequantizeLinear", [codes, self._floats("step", step)], scaled)
        self._node("Add", [scaled, self._floats("low", low)], self._name)

    def _half(self, tensor: EncodedTensor, encoding: Dense) -> None:
        types = self._onnx.TensorProto
        kind = types.FLOAT16 if encoding.kind == "float16" else types.BFLOAT16
        halves = self._raw("half", kind, tensor.shape, tensor.segment.tobytes())
        self._node("Cast", [halves], self._name, to=types.FLOAT)

    def _integers(self, codes: Array, kind: int) -> str:
        types = self._onnx.TensorProto
        if kind in (types.INT4, types.UINT4):
            return self._raw("codes", kind, codes.shape, _nibbles(codes))
        stored = {types.UINT8: "<u1", types.INT8: "<i1", types.INT16: "<i2"}[kind]
        return self._raw("codes", kind, codes.shape, codes.astype(stored).tobytes())

    def _floats(self, part: str, values: npt.ArrayLike) -> str:
        array = np.asarray(values, "<f4")
        return self._raw(part, self._onnx.TensorProto.FLOAT, array.shape, array.tobytes())

    def _raw(self, part: str, kind: int, shape: tuple[int, ...], data: bytes) -> str:
        name = f"{self._name}.{part}"
        self.initializers.append(self._onnx.helper.make_tensor(name, kind, shape, data, raw=True))
        return name

    def _node(self, operator: str, inputs: list[str], output: str, **attributes: int) -> None:
        self.nodes.append(
            self._onnx.helper.make_node(operator, inputs, [output], name=output, **attributes)
        )


def _nibbles(codes: Array) -> bytes:
    """Return codes of 4 bits, two a byte, the first in the low half (ONNX's order)."""
    low = codes.reshape(-1).astype(np.int16).astype(np.uint8) & np.uint8(15)
    even = np.append(low, np.zeros(low.size % 2, np.uint8))
    packed: npt.NDArray[np.uint8] = even[0::2] | even[1::2] << np.uint8(4)
    return packed.tobytes()
