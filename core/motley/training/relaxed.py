"""A model that runs with weights between full precision and their binary projection.

BinaryRelax (Yin et al., arXiv 1801.06313). `model` holds y, `relaxed` x; what is not quantized is
shared by both. Values are [K, d], one row a client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from motley.quantize.centres import initial_centres
from motley.quantize.codebooks import Layer, lay_out
from motley.quantize.quantizer import hard_quantize
from motley.training.flat import FlatModel, Tensors
from motley.training.personal import Array, full_precision_state
from motley.workload import Variant


def project(weights: torch.Tensor) -> torch.Tensor:
    """Return mean|y| · sign(y) of one layer's weights [K, d], a scale for each row.

    The nearest point with two values of opposite sign and equal size. Zero counts as negative.
    """
    return hard_quantize(weights, initial_centres(weights, 2, "magnitude"))


class RelaxedModel:
    """y and x of one model, and where its quantized layers lie."""

    def __init__(self, model: FlatModel, layers: Sequence[Layer]) -> None:
        """Take a model whose quantized layers are the head of its buffer; none: x is y."""
        self.model, self.layers = model, tuple(layers)
        self.relaxed = model.twin(whole=True) if layers else model

    @classmethod
    def open(cls, state: Mapping[str, Array], variant: Variant, device: str) -> RelaxedModel:
        """Return the model of a state as `close` and `binary_state` make it."""
        tensors = {key[6:]: values for key, values in state.items() if key.startswith("model/")}
        names = [key[8:] for key in state if key.startswith("centres/")]
        layers = lay_out([(name, tensors[name].size, 2) for name in names])
        return cls(FlatModel.build(variant, tensors, device, names), layers)

    def relax(self, share: float) -> None:
        """Set x = y + share · (proj(y) - y); `share` is λ / (λ + 1), and 1 gives proj(y) itself."""
        for layer in self.layers:
            own = self.model.values[:, layer.weights]
            self.relaxed.values[:, layer.weights] = torch.lerp(own, project(own), share)

    def close(self) -> Tensors:
        """Return the state: y, the statistics of x's layers, ± the scale of each layer."""
        self.model.adopt_buffers(self.relaxed)
        return binary_state(self.model.tensors(), [layer.name for layer in self.layers])


def binary_state(tensors: Mapping[str, Array], names: Sequence[str]) -> Tensors:
    """Return the state of a model of which the tensors `names` are used as their projection."""
    state = full_precision_state(tensors)
    for name in names:
        flat = torch.from_numpy(np.ascontiguousarray(tensors[name]).reshape(1, -1))
        state[f"centres/{name}"] = initial_centres(flat, 2, "magnitude")[0].numpy()
    return state
