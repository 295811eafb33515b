"""SGD whose every step is private: mode "ldp-sgd" (LDP-FedP3, arXiv 2404.09816; Abadi et al.,
"Deep Learning with Differential Privacy", arXiv 1607.00133, algorithm 1).

A step from w, with m records on the device, each in the batch B with probability q on its own:

    g̃ = (1/b) [ Σ_{j in B} clip(∇f_j(w), C) + N(0, z²C² I) ],    w ← w - η (g̃ + wd w)

b is a constant of the run file and not the size of B or of the data, which would be data. Noise is
on every trained coordinate, also of empty batches and of gradients that are zero. What comes after
g̃ (momentum, weight decay, sending a part of w) sees no record again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from motley.privacy.clipping import Forward, Loss, PerSampleClipper
from motley.privacy.guarantee import Guarantee
from motley.privacy.noise import SecretStream, derive_key
from motley.workload import Augmentation, Split


@dataclass(frozen=True)
class Descent:
    """How noisy gradients are used; nothing here sees data."""

    rate: Callable[[int], float]
    """Learning rate η of a step."""
    weight_decay: float = 0.0
    """wd."""
    momentum: float = 0.0
    """Of g̃ + wd w, at rest when a task begins."""
    forward: Callable[[int], Forward] = lambda step: dict
    """Of a step within the task: what the model computes with, given its parameters."""
    moving: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """By name of a parameter, bool in its shape: where it may move; others move everywhere."""


def private_sgd(
    module: torch.nn.Module,
    split: Split,
    loss: Loss,
    guarantee: Guarantee,
    noise_multiplier: float,
    key: bytes,
    descent: Descent,
    *,
    augmentation: Augmentation | None = None,
    microbatch: int = 0,
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
        descent: how g̃ is used; its rate is η of a step counted from 0 within the task.
        augmentation: changes each record by itself, as the key draws.
        microbatch: records whose gradients are held at once; 0: what 64 MiB hold.
        progress: called with the finished fraction.
    """
    device = next(module.parameters()).device
    inputs, targets = torch.from_numpy(split.inputs), torch.from_numpy(split.targets)
    batches, noise = SecretStream(key, "batches"), SecretStream(key, "noise")
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    velocity = (
        {name: torch.zeros_like(p) for name, p in trained.items()} if descent.momentum else {}
    )
    module.train()
    for step in range(guarantee.steps_per_task):
        drawn = np.flatnonzero(batches.uniform(len(split)) < guarantee.sampling_rate)
        index = torch.from_numpy(drawn)
        clipper = PerSampleClipper(
            module,
            loss,
            guarantee.clip,
            microbatch=microbatch,
            forward=descent.forward(step),
            moving=descent.moving,
        )
        records = inputs[index].to(device)
        if augmentation is not None:
            records = _augmented(augmentation, records, derive_key(key, "augment", step))
        total = clipper.clipped_sum(records, targets[index].to(device))
        noisy = _noisy_mean(total, guarantee, noise_multiplier, noise)
        with torch.no_grad():
            for (name, p), mean in zip(trained.items(), noisy, strict=True):
                direction = mean.to(device, p.dtype).add_(p, alpha=descent.weight_decay)
                if name in descent.moving:
                    direction.mul_(descent.moving[name])
                if velocity:
                    direction = velocity[name].mul_(descent.momentum).add_(direction)
                p.add_(direction, alpha=-descent.rate(step))
        progress((step + 1) / guarantee.steps_per_task)


def _augmented(augmentation: Augmentation, records: torch.Tensor, key: bytes) -> torch.Tensor:
    """Return records changed one by one, by rows that are drawn alike and hidden by the key.

    A record more or less then moves the others' rows, and nothing that could be told of them. By
    draws that the server can repeat it would change the gradients of all.
    """
    generator = np.random.Generator(np.random.Philox(int.from_bytes(key, "little")))
    drawn = torch.from_numpy(augmentation.draw(generator, len(records))).to(records.device)
    places = range(len(records))
    changed = [augmentation.apply(records[i : i + 1], drawn[i : i + 1]) for i in places]
    return torch.cat(changed) if changed else records


def _noisy_mean(
    total: Sequence[torch.Tensor],
    guarantee: Guarantee,
    noise_multiplier: float,
    noise: SecretStream,
) -> Iterator[torch.Tensor]:
    """Yield g̃ = (s + N(0, z²C² I)) / b, tensor by tensor, float64 on the CPU."""
    for clipped in total:
        noisy = torch.from_numpy(noise.gaussian(clipped.numel())).view(clipped.shape)
        noisy.mul_(noise_multiplier * guarantee.clip).add_(clipped.cpu())
        yield noisy.div_(guarantee.batch_size)
