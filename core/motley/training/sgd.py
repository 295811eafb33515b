"""Plain local SGD on one model, in place."""

from __future__ import annotations

from collections.abc import Callable

import torch

from motley.algorithms.base import ClientContext
from motley.training.accelerator import samples_on
from motley.training.batches import Batches
from motley.training.losses import mean_loss


def local_sgd(
    module: torch.nn.Module,
    context: ClientContext,
    batches: Batches,
    *,
    steps: int,
    learning_rate: Callable[[int], float],
    weight_decay: float = 0.0,
    momentum: float = 0.0,
) -> float:
    """Take `steps` steps x ← x - η (∇f(x) + wd·x) from the plan's iteration on; return mean loss.

    Momentum, where it is not 0, starts at zero with every task.

    Raises:
        TrainingError: a loss is not finite.
    """
    device = context.device
    inputs, targets = samples_on(context.data.train, device)
    parameters = [p for p in module.parameters() if p.requires_grad]
    velocity = [torch.zeros_like(p) for p in parameters] if momentum else []
    losses = []
    module.train()
    for step in range(steps):
        iteration = context.plan.iteration + step
        index = torch.from_numpy(batches(iteration)).to(device)
        loss = context.workload.loss(module(inputs[index]), targets[index]).mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for position, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
                direction = g.add(p, alpha=weight_decay) if weight_decay else g
                if velocity:
                    direction = velocity[position].mul_(momentum).add_(direction)
                p.add_(direction, alpha=-learning_rate(iteration))
        losses.append(loss.detach())
        context.progress((step + 1) / steps)
    return mean_loss(losses, context.task)
