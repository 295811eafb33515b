"""Local training of a pruned model (FedP3), by trainers that have names.

W is the model that came down: whole where the client sends a layer, pruned elsewhere. At step k a
trainer takes the gradient of the loss at W with the step's own masks laid over it, and moves
what may move. Pruned weights stay 0; a weight that one step leaves out keeps its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch.func import functional_call

from motley.algorithms.base import ClientContext
from motley.prune.local import StepMasks
from motley.training.evaluation import to_torch
from motley.training.losses import mean_loss

if TYPE_CHECKING:
    from motley.algorithms.fedp3 import FedP3Settings

Gradients = list[torch.Tensor]
Masks = Mapping[str, torch.Tensor]


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


class LocalTrainer(Protocol):
    """A way to do one task's local steps; `motley.algorithms.fedp3_strategies` names them."""

    def __call__(
        self, network: Subnetwork, context: ClientContext, settings: FedP3Settings
    ) -> dict[str, float]:
        """Train the network in place; return metrics."""


def sgd(network: Subnetwork, context: ClientContext, settings: FedP3Settings) -> dict[str, float]:
    """Take τ steps of SGD on the loss, with the gradient's norm bounded."""
    return _descend(network, context, settings, lambda gradients: gradients)


def fedprox(
    network: Subnetwork, context: ClientContext, settings: FedP3Settings
) -> dict[str, float]:
    """Take τ steps on the loss + μ/2 ‖W - W_t‖², W_t being the model that came down.

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

    return _descend(network, context, settings, pulled)


def _descend(
    network: Subnetwork,
    context: ClientContext,
    settings: FedP3Settings,
    change: Callable[[Gradients], Gradients],
) -> dict[str, float]:
    inputs, targets = to_torch(context.data.train, context.device)
    batches = settings.batches(context)
    parameters = list(network.parameters.values())
    velocity = [torch.zeros_like(p) for p in parameters] if settings.momentum else []
    losses = []
    network.module.train()
    for step in range(settings.local_steps):
        iteration = context.plan.iteration + step
        index = torch.from_numpy(batches(iteration)).to(context.device)
        masks = network.masks(iteration)
        outputs = network(inputs[index], masks)
        loss = context.workload.loss(outputs, targets[index]).mean()
        directions = change(list(torch.autograd.grad(loss, parameters)))
        if settings.gradient_clip:
            # The norm is that of the pruned model: what is cut off has no part in it.
            directions = _clipped(network.allowed(directions), settings.gradient_clip)
        if settings.weight_decay:
            directions = [
                d.add(p.detach(), alpha=settings.weight_decay)
                for d, p in zip(directions, parameters, strict=True)
            ]
        for position, direction in enumerate(directions if velocity else []):
            directions[position] = velocity[position].mul_(settings.momentum).add_(direction)
        network.move(directions, settings.rate(iteration), masks)
        losses.append(loss.detach())
        context.progress((step + 1) / settings.local_steps)
    return {"loss": mean_loss(losses, context.task)}


def _clipped(gradients: Gradients, bound: float) -> Gradients:
    """Return the gradients, scaled so that their joint L2 norm is at most `bound`."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    factor = float(bound / norm) if norm > bound else 1.0
    return gradients if factor == 1.0 else [gradient * factor for gradient in gradients]
