"""A model whose trained parameters lie in one buffer.

One fused operation then updates all of them, and the gradient is as flat as the values. Buffers
carry a leading client dimension of 1, so that the update rules are those of a batch of clients.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from motley.errors import TrainingError
from motley.models.units import load_tensors
from motley.workload import Variant

Tensors = dict[str, npt.NDArray[np.generic]]


class FlatModel:
    """A module, its trained parameters as views of `values`, and their gradient."""

    _velocity: torch.Tensor | None = None

    def __init__(self, module: torch.nn.Module, first: Sequence[str] = ()) -> None:
        """Move the module's trained parameters into one new buffer.

        Args:
            module: the model; its parameters keep their values.
            first: names of parameters to lie at the head of the buffer, in this order.

        Raises:
            TrainingError: the module has no parameter to train, or they differ in dtype.
        """
        self.module = module
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.names = (*first, *(name for name in trained if name not in first))
        self.parameters = [trained[name] for name in self.names]
        if len({p.dtype for p in self.parameters}) != 1:
            raise TrainingError(
                "the model's trained parameters are of "
                f"{sorted({str(p.dtype) for p in self.parameters}) or 'no'} types; expected one"
            )
        self.head = sum(trained[name].numel() for name in first)
        self.values = torch.cat([p.detach().reshape(-1) for p in self.parameters]).unsqueeze(0)
        """[1, d]."""
        self._gradient = torch.empty_like(self.values)
        _bind(self.parameters, self.values)

    @classmethod
    def build(
        cls,
        variant: Variant,
        tensors: Mapping[str, npt.NDArray[np.generic]],
        device: str,
        first: Sequence[str] = (),
    ) -> FlatModel:
        """Build a variant with the given values, in training mode; global draws are untouched."""
        with torch.random.fork_rng(devices=[]):
            module = variant.build()
        load_tensors(module, tensors)
        return cls(module.to(device).train(), first)

    def twin(self, *, whole: bool) -> FlatModel:
        """Return a copy with a head of its own that shares the other parameters with this model.

        Args:
            whole: whether its gradient covers all parameters, [1, d]; else the head, [1, head].
        """
        twin = copy.copy(self)
        twin.module = copy.deepcopy(self.module)
        named = dict(twin.module.named_parameters())
        parameters = [named[name] for name in self.names]
        heads = sum(1 for _ in _leading(parameters, self.head))
        twin.values = self.values[:, : self.head].clone()
        _bind(parameters[:heads], twin.values)
        _bind(parameters[heads:], self.values[:, self.head :])
        for parameter in parameters[heads:]:
            parameter.requires_grad_(whole)
        twin.parameters = parameters if whole else parameters[:heads]
        twin._gradient = torch.empty_like(self.values if whole else twin.values)
        return twin

    def gradient(self, result: torch.Tensor, upstream: torch.Tensor | None = None) -> torch.Tensor:
        """Return the gradient of a loss, [1, d]; the next call overwrites it.

        Args:
            result: the loss (scalar), or with `upstream` any output of the module.
            upstream: the loss's gradient in `result`.
        """
        if upstream is not None:
            # The same gradients, to the last bit. Given as `grad_outputs`, torch would import what
            # it has for symbolic shapes: 35 MB and a second in each training process.
            assert result.shape == upstream.shape
            result = (result * upstream).sum()
        parts = torch.autograd.grad(result, self.parameters, allow_unused=True)
        rows = len(self.values)
        flat = [
            (torch.zeros_like(parameter) if part is None else part).reshape(rows, -1)
            for parameter, part in zip(self.parameters, parts, strict=True)
        ]
        torch.cat(flat, dim=1, out=self._gradient)
        return self._gradient

    def descend(
        self, gradient: torch.Tensor, rate: float, weight_decay: float = 0.0, momentum: float = 0.0
    ) -> None:
        """Take a gradient step; `gradient` is used up. The arithmetic is torch.optim.SGD's.

        Momentum starts at rest with this object.
        """
        if weight_decay:
            gradient.add_(self.values, alpha=weight_decay)
        if momentum:
            if self._velocity is None:
                self._velocity = torch.zeros_like(self.values)
            gradient = self._velocity.mul_(momentum).add_(gradient)
        self.values.add_(gradient, alpha=-rate)

    def tensors(self) -> Tensors:
        """Return copies of all tensors, buffers included, in order of the state_dict."""
        return {
            name: tensor.detach().cpu().numpy().copy()
            for name, tensor in self.module.state_dict().items()
        }

    @property
    def parameter_names(self) -> set[str]:
        """Names of all parameters, also of those that are not trained."""
        return set(dict(self.module.named_parameters(remove_duplicate=False)))

    def tensors_of_all(self) -> list[Tensors]:
        """Return `tensors` of each of the models: of this one."""
        return [self.tensors()]

    def adopt_buffers(self, other: FlatModel) -> None:
        """Copy the other model's buffers (BatchNorm's statistics) into this one's."""
        for own, theirs in zip(self.module.buffers(), other.module.buffers(), strict=True):
            own.copy_(theirs)


def _bind(parameters: Sequence[torch.nn.Parameter], values: torch.Tensor) -> None:
    """Make parameters views of `values` [1, d], one behind the other."""
    place = 0
    for parameter in parameters:
        # Through .data: a step on the buffer must not count as a change inside a graph.
        size = parameter.numel()
        parameter.data = values[0, place : place + size].view(parameter.shape)
        place += size


def _leading(parameters: Sequence[torch.nn.Parameter], size: int) -> Sequence[torch.nn.Parameter]:
    """Return the parameters that fill the first `size` places."""
    filled = 0
    for count, parameter in enumerate(parameters):
        if filled == size:
            return parameters[:count]
        filled += parameter.numel()
    return parameters
