"""Models of many clients whose weights are integers, trained at once (FedMPQ).

The passes through the model are those of `ManyModel`: its values of an integer layer are made from
the integers after each step. The integers stay each client's own `IntegerLayer`, with a width, a
step and draws of its own, and move as they do when that client trains alone. So clients train
together whatever their widths are. Full precision exists for all layers here, and not for one at a
time: a simulation holds K models in any case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from motley.training.integer import IntegerLayer, owner_of_integers
from motley.training.many import ManyModel


class ManyIntegers:
    """K models of one variant of which the same layers are integers."""

    def __init__(self, model: ManyModel, layers: Sequence[Mapping[str, IntegerLayer]]) -> None:
        """Take the models, and each client's integers by name of the tensor that they stand for.

        Raises:
            PlanError: integers cannot stand in for one of the tensors.
        """
        for name in layers[0]:
            owner_of_integers(model.skeleton, name)
        self.model, self.layers = model, layers
        named = zip(model.names, model.parameters, strict=True)
        self._velocity = {n: torch.zeros_like(p) for n, p in named if n not in layers[0]}

    def step(
        self,
        loss: torch.Tensor,
        rate: float,
        momentum: float,
        lasso: Sequence[Mapping[str, float]],
    ) -> None:
        """Take one step of all clients, as `IntegerModel.step` does for one.

        Args:
            loss: sum of the clients' losses, a scalar.
            rate: learning rate, in units of the weights.
            momentum: of the full-precision part.
            lasso: each client's weights of the group lasso, by layer.
        """
        parameters = self.model.parameters
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for name, parameter, gradient in zip(self.model.names, parameters, found, strict=True):
                if gradient is None:
                    continue
                if name in self._velocity:
                    velocity = self._velocity[name].mul_(momentum).add_(gradient)
                    parameter.add_(velocity, alpha=-rate)
                    continue
                for row, own in enumerate(self.layers):
                    layer = own[name]
                    layer.rate, layer.lasso = rate, lasso[row].get(name, 0.0)
                    layer.take(gradient[row])
                    torch.mul(layer.codes, layer.step, out=parameter[row])
