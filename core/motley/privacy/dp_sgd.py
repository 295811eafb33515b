"""SGD whose every step is private: mode "ldp-sgd" (LDP-FedP3, arXiv 2404.09816; Abadi et al.,
"Deep Learning with Differential Privacy", arXiv 1607.00133, algorithm 1).

A step from w, with m records on the device, each in the batch B with probability q on its own:

    g̃ = (1/b) [ Σ_{j in B} clip(∇f_j(w), C) + N(0, z²C² I) ],    w ← w - η (g̃ + wd w)

b is a constant of the run file and not the size of B or of the data, which would be data. Noise is
on every trained coordinate, also of empty batches and of gradients that are zero. What comes after
g̃ (momentum, weight decay, sending a part of w) sees no record again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from motley.privacy.clipping import NO_MASKS, Forward, Loss, PerSampleClipper
from motley.privacy.guarantee import Guarantee
from motley.privacy.noise import SecretStream
from motley.workload import Split


def private_sgd(
    module: torch.nn.Module,
    split: Split,
    loss: Loss,
    guarantee: Guarantee,
    noise_multiplier: float,
    key: bytes,
    *,
    learning_rate: Callable[[int], float],
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    microbatch: int = 0,
    forward: Callable[[int], Forward] = lambda step: dict,
    moving: Mapping[str, torch.Tensor] = NO_MASKS,
    progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Take `guarantee.steps_per_task` private steps on the parameters that need a gradient.

    Args:
        module: the model, changed in place.
        split: the records, inputs [m, ...] and targets [m, ...]; m may be 0.
        loss: of a batch, one value for each record.
        guarantee: mode "ldp-sgd"; C, q, b and the number of steps.
        noise_multiplier: z.
        key: secret of this task alone (`TaskPrivacy.spend`).
        learning_rate: η of a step, counted from 0 within the task.
        weight_decay: wd.
        momentum: of g̃ + wd w, at rest when the task begins.
        microbatch: records whose gradients are held at once; 0: what 64 MiB hold.
        forward: of a step: what the model computes with, given the parameters.
        moving: by name of a parameter, bool in its shape: where it may move; default everywhere.
        progress: called with the finished fraction.
    """
    device = next(module.parameters()).device
    inputs, targets = torch.from_numpy(split.inputs), torch.from_numpy(split.targets)
    batches, noise = SecretStream(key, "batches"), SecretStream(key, "noise")
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    velocity = [torch.zeros_like(p) for p in trained.values()] if momentum else []
    module.train()
    for step in range(guarantee.steps_per_task):
        drawn = np.flatnonzero(batches.uniform(len(split)) < guarantee.sampling_rate)
        index = torch.from_numpy(drawn)
        clipper = PerSampleClipper(
            module,
            loss,
            guarantee.clip,
            microbatch=microbatch,
            forward=forward(step),
            moving=moving,
        )
        total = clipper.clipped_sum(inputs[index].to(device), targets[index].to(device))
        with torch.no_grad():
            for position, ((name, p), s) in enumerate(zip(trained.items(), total, strict=True)):
                noisy = torch.from_numpy(noise.gaussian(p.numel())).view(p.shape)
                noisy.mul_(noise_multiplier * guarantee.clip).add_(s.cpu())
                direction = noisy.div_(guarantee.batch_size).to(device, p.dtype)
                direction.add_(p, alpha=weight_decay)
                if name in moving:
                    direction.mul_(moving[name])
                if velocity:
                    direction = velocity[position].mul_(momentum).add_(direction)
                p.add_(direction, alpha=-learning_rate(step))
        progress((step + 1) / guarantee.steps_per_task)
