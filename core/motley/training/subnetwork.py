"""Local training of a pruned model (FedP3), by trainers that have names.

W is the model that came down: whole where the client sends a layer, pruned elsewhere. At step k a
trainer takes the gradient of the loss at W with the step's own masks laid over it, and moves
what may move. Pruned weights stay 0; a weight that one step leaves out keeps its value.

A step is written once, for one client's network or for those of many (`ManySubnetwork`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.func import functional_call

from motley.prune.local import Bools, StepMasks
from motley.training.many import ManyModel
from motley.training.replay import Drawn
from motley.workload import Workload

if TYPE_CHECKING:
    from motley.algorithms.fedp3_settings import FedP3Settings

Gradients = list[torch.Tensor]
Masks = Mapping[str, torch.Tensor]
Step = Callable[[int], torch.Tensor]
"""Takes an iteration of the run, moves a network and returns the loss before: [], or [K]."""


@dataclass
class Subnetwork:
    """A module in training mode, and what of it may move."""

    module: torch.nn.Module
    moving: Masks = field(default_factory=dict)
    """By name of a parameter: bool, where it may move. Others move everywhere."""
    local: StepMasks | None = None
    """Masks of single steps."""

    def __post_init__(self) -> None:
        self.parameters: dict[str, torch.Tensor] = {
            name: p for name, p in self.module.named_parameters() if p.requires_grad
        }

    def masks(self, iteration: int) -> dict[str, torch.Tensor]:
        """Return the masks of one step by parameter; empty where nothing is left out."""
        if self.local is None:
            return {}
        return {
            name: torch.from_numpy(mask).to(self.parameters[name].device)
            for name, mask in self.local(iteration).items()
        }

    def __call__(self, inputs: torch.Tensor, masks: Masks) -> torch.Tensor:
        """Return the outputs of the model with a step's masks laid over its parameters."""
        outputs: torch.Tensor
        if not masks:
            outputs = self.module(inputs)
            return outputs
        values = {name: self.parameters[name] * mask for name, mask in masks.items()}
        outputs = functional_call(self.module, values, (inputs,))
        return outputs

    def norms(self, gradients: Gradients) -> torch.Tensor:
        """Return the joint L2 norm of gradients, one for each of the parameters: a scalar."""
        each = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(each))
        return norm

    def allowed(self, directions: Gradients) -> Gradients:
        """Return directions, one for each of the parameters, with 0 where nothing may move."""
        return [
            direction * self.moving[name] if name in self.moving else direction
            for name, direction in zip(self.parameters, directions, strict=True)
        ]

    @torch.no_grad()
    def move(self, directions: Gradients, rate: float, masks: Masks) -> None:
        """Take x ← x - rate · direction where x may move and the step did not leave it out."""
        moved = self.allowed(directions)
        for (name, parameter), direction in zip(self.parameters.items(), moved, strict=True):
            if name in masks:
                direction = direction * masks[name]
            parameter.add_(direction, alpha=-rate)


def stacked(masks: Sequence[Mapping[str, Bools]], device: str) -> dict[str, torch.Tensor]:
    """Return K clients' masks of the same tensors, by name, as one [K, ...] each."""
    # Which tensors have masks follows from `upload`, `sparsity` and settings: equal in a group.
    assert all(own.keys() == masks[0].keys() for own in masks), "masks of unequal plans"
    return {
        name: torch.from_numpy(np.stack([own[name] for own in masks])).to(device)
        for name in masks[0]
    }


class ManySubnetwork(Subnetwork):
    """The networks of K clients with equal plans: parameters and masks are [K, ...] each."""

    def __init__(self, model: ManyModel, moving: Masks, local: Sequence[StepMasks]) -> None:
        """Take the models, where each may move (by parameter, [K, ...]), and each one's masks."""
        super().__init__(model.skeleton, moving)
        self.parameters = dict(zip(model.names, model.parameters, strict=True))
        self._model, self._local = model, local

    def masks(self, iteration: int) -> dict[str, torch.Tensor]:
        """Return the masks of one step by parameter, [K, ...]; empty where nothing is left out."""
        each = [local(iteration) for local in self._local]
        return stacked(each, str(self._model.values.device))

    def __call__(self, inputs: torch.Tensor, masks: Masks) -> torch.Tensor:
        """Return the outputs [K·B, ...] of the models with a step's masks over their parameters."""
        values = {name: self.parameters[name] * mask for name, mask in masks.items()}
        return self._model.over(values, inputs)

    def norms(self, gradients: Gradients) -> torch.Tensor:
        """Return each client's joint L2 norm, [K]."""
        each = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
        norms: torch.Tensor = torch.linalg.vector_norm(torch.stack(each), dim=0)
        return norms


class LocalTrainer(Protocol):
    """A way to do local steps; `motley.algorithms.fedp3_strategies` names them."""

    def __call__(
        self,
        network: Subnetwork,
        workload: Workload,
        feed: Callable[[int], Drawn],
        settings: FedP3Settings,
    ) -> Step:
        """Return the step of a task that begins at the network's values, in place.

        `feed` has the batches by iteration: of one client, or of those whose networks these are.
        """


def sgd(
    network: Subnetwork,
    workload: Workload,
    feed: Callable[[int], Drawn],
    settings: FedP3Settings,
) -> Step:
    """Return a step of SGD on the loss, with the gradient's norm bounded."""
    return _descent(network, workload, feed, settings, lambda gradients: gradients)


def fedprox(
    network: Subnetwork,
    workload: Workload,
    feed: Callable[[int], Drawn],
    settings: FedP3Settings,
) -> Step:
    """Return a step on the loss + μ/2 ‖W - W_t‖², W_t being the model that came down.

    Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv 1812.06127,
    equation 2; μ is `proximal`.
    """
    anchors = [parameter.detach().clone() for parameter in network.parameters.values()]

    def pulled(gradients: Gradients) -> Gradients:
        return [
            gradient + settings.proximal * (parameter.detach() - anchor)
            for gradient, parameter, anchor in zip(
                gradients, network.parameters.values(), anchors, strict=True
            )
        ]

    return _descent(network, workload, feed, settings, pulled)


def _descent(
    network: Subnetwork,
    workload: Workload,
    feed: Callable[[int], Drawn],
    settings: FedP3Settings,
    change: Callable[[Gradients], Gradients],
) -> Step:
    parameters = list(network.parameters.values())
    velocity = [torch.zeros_like(p) for p in parameters] if settings.momentum else []

    def step(iteration: int) -> torch.Tensor:
        batch, masks = feed(iteration), network.masks(iteration)
        losses = batch.means(workload.loss(network(batch.inputs, masks), batch.targets))
        directions = change(list(torch.autograd.grad(losses.sum(), parameters)))
        if settings.gradient_clip:
            # The norm is that of the pruned model: what is cut off has no part in it.
            directions = _clipped(network, network.allowed(directions), settings.gradient_clip)
        if settings.weight_decay:
            directions = [
                d.add(p.detach(), alpha=settings.weight_decay)
                for d, p in zip(directions, parameters, strict=True)
            ]
        for position, direction in enumerate(directions if velocity else []):
            directions[position] = velocity[position].mul_(settings.momentum).add_(direction)
        network.move(directions, settings.rate(iteration), masks)
        return losses.detach()

    return step


def _clipped(network: Subnetwork, gradients: Gradients, bound: float) -> Gradients:
    """Return the gradients, scaled so that their joint L2 norm is at most `bound`."""
    factors = (bound / network.norms(gradients)).clamp(max=1.0)
    return [
        gradient * factors.view(*factors.shape, *[1] * (gradient.dim() - factors.dim()))
        for gradient in gradients
    ]
