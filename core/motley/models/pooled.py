"""A convolution, its ReLU and a 2x2 pool, named as one step."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from motley.models.rectifier import Rectifier

POOL = 2
"""Side of the pooled squares."""


def rectified_pool(
    convolution: nn.Conv2d, rectifier: Rectifier, x_BCHW: torch.Tensor
) -> torch.Tensor:
    """Return max_pool2d(rectifier(convolution(x)), 2), [B, filters, height, width].

    Who trains many clients at once may have given the convolution a `rectified_pool` of its own,
    which does the three together (`motley.training.folded`).
    """
    together = getattr(convolution, "rectified_pool", None)
    if together is not None and not rectifier.bits:
        pooled: torch.Tensor = together(x_BCHW)
        return pooled
    return functional.max_pool2d(rectifier(convolution(x_BCHW)), POOL)
