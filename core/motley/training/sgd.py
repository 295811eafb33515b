"""Plain local SGD on one model, in place."""

from __future__ import annotations

from collections.abc import Callable

import torch

from motley.algorithms.base import ClientContext
from motley.training.batches import Batches
from motley.training.steps import Feed, take_steps


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
    feed = Feed(context, batches)
    parameters = [p for p in module.parameters() if p.requires_grad]
    velocity = [torch.zeros_like(p) for p in parameters] if momentum else []
    module.train()

    def step(iteration: int) -> torch.Tensor:
        batch = feed(iteration)
        losses = context.workload.loss(module(batch.inputs), batch.targets)
        loss = batch.means(losses)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for position, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
                direction = g.add(p, alpha=weight_decay) if weight_decay else g
                if velocity:
                    direction = velocity[position].mul_(momentum).add_(direction)
                p.add_(direction, alpha=-learning_rate(iteration))
        return loss.detach()

    return take_steps(context, steps, step)
