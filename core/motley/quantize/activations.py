"""Activations in few bits, with the gradient passed straight through."""

from __future__ import annotations

from typing import Any

import torch

CEILING = 6.0
"""Activations are bounded by it before they are rounded (ReLU6)."""


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bits: int, clients: int) -> torch.Tensor:
        ctx.save_for_backward(x)
        bounded = x.clamp(0.0, CEILING)
        own = bounded.view(clients, -1, *x.shape[1:])
        step = own.amax(tuple(range(1, own.dim())), keepdim=True) / (2**bits - 1)
        # A step of 0 means that nothing is active: 0 / 1 stays 0.
        safe = torch.where(step > 0, step, torch.ones_like(step))
        own.div_(safe).round_().mul_(safe)
        return bounded

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return gradients[0] * ((x > 0) & (x < CEILING)), None, None


def quantize_activations(x: torch.Tensor, bits: int, clients: int = 1) -> torch.Tensor:
    """Return clip(x, 0, 6) rounded to multiples of max / (2^bits - 1), max over the tensor.

    The range is that of the batch at hand (FedMPQ's code: per tensor, dynamic). The gradient is
    that of the clip: 1 between 0 and 6, else 0 (straight-through estimator).

    Args:
        x: [B, ...], or [K·B, ...], client by client.
        bits: 1 to 8.
        clients: K; each one's samples have a range of their own.
    """
    rounded: torch.Tensor = _Rounded.apply(x, bits, clients)  # type: ignore[no-untyped-call]
    return rounded
