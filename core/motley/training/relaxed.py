"""A model that runs with weights between full precision and their binary projection.

BinaryRelax (Yin et al., arXiv 1801.06313). `model` holds y, `relaxed` x; what is not quantized is
shared by both. Values are [K, d], one row a client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar, cast

import numpy as np
import torch

from motley.algorithms.base import ClientContext
from motley.quantize.centres import initial_centres
from motley.quantize.codebooks import Layer, lay_out
from motley.quantize.quantizer import hard_quantize
from motley.training.flat import FlatModel, Tensors
from motley.training.many import ManyModel, open_many
from motley.training.personal import Array, full_precision_state
from motley.workload import Variant

Flat = TypeVar("Flat", bound=FlatModel)


def project(weights: torch.Tensor) -> torch.Tensor:
    """Return mean|y| · sign(y) of one layer's weights [K, d], a scale for each row.

    The nearest point with two values of opposite sign and equal size. Zero counts as negative.
    """
    return hard_quantize(weights, initial_centres(weights, 2, "magnitude"))


class RelaxedModel(Generic[Flat]):
    """y and x of one model or of many, and where their quantized layers lie."""

    def __init__(self, model: Flat, layers: Sequence[Layer]) -> None:
        """Take a model whose quantized layers are the head of its buffer; none: x is y."""
        self.model, self.layers = model, tuple(layers)
        self.relaxed = cast(Flat, model.twin(whole=True)) if layers else model

    @classmethod
    def open(
        cls, state: Mapping[str, Array], variant: Variant, device: str
    ) -> RelaxedModel[FlatModel]:
        """Return the model of a state as `binary_state` makes it."""
        tensors, layers = _read(state)
        first = [layer.name for layer in layers]
        return RelaxedModel(FlatModel.build(variant, tensors, device, first), layers)

    @classmethod
    def open_many(
        cls, states: Sequence[Mapping[str, Array]], contexts: Sequence[ClientContext]
    ) -> RelaxedModel[ManyModel] | None:
        """Return the models of clients that train together; None when their variant cannot."""
        layers = _read(states[0])[1]
        tensors = [_read(state)[0] for state in states]
        first = [layer.name for layer in layers]
        model = open_many(contexts, contexts[0].plan.variant, tensors, first)
        return None if model is None else RelaxedModel(model, layers)

    @property
    def names(self) -> list[str]:
        """Names of the quantized tensors."""
        return [layer.name for layer in self.layers]

    def relax(self, share: float) -> None:
        """Set x = y + share · (proj(y) - y); `share` is λ / (λ + 1), and 1 gives proj(y) itself."""
        for layer in self.layers:
            own = self.model.values[:, layer.weights]
            self.relaxed.values[:, layer.weights] = torch.lerp(own, project(own), share)

    def close(self) -> Flat:
        """Return y with the statistics of x's layers."""
        if self.relaxed is not self.model:
            self.model.adopt_buffers(self.relaxed)
        return self.model


def _read(state: Mapping[str, Array]) -> tuple[Tensors, list[Layer]]:
    """Return a state's tensors, and where its quantized ones lie in a buffer."""
    tensors = {key[6:]: values for key, values in state.items() if key.startswith("model/")}
    names = [key[8:] for key in state if key.startswith("centres/")]
    return tensors, lay_out([(name, tensors[name].size, 2) for name in names])


def binary_state(tensors: Mapping[str, Array], names: Sequence[str]) -> Tensors:
    """Return the state of a model of which the tensors `names` are used as their projection."""
    state = full_precision_state(tensors)
    for name in names:
        flat = torch.from_numpy(np.ascontiguousarray(tensors[name]).reshape(1, -1))
        state[f"centres/{name}"] = initial_centres(flat, 2, "magnitude")[0].numpy()
    return state
