"""What would break a guarantee and is therefore refused before anything is spent."""

from __future__ import annotations

import torch
from torch import nn

from motley.errors import PrivacyError


def check_module(module: nn.Module) -> None:
    """Raise PrivacyError when the model keeps or uses statistics over records of a batch.

    Batch normalisation mixes records, so that none has a gradient of its own; and its running
    statistics, which are sent with the model, are data.
    """
    for name, child in module.named_modules():
        running = bool(getattr(child, "track_running_stats", False))
        if isinstance(child, nn.modules.batchnorm._BatchNorm) or running:
            raise PrivacyError(
                f"layer {name or type(child).__name__} is a {type(child).__name__}, which computes "
                f"statistics over records: no record's share could be bounded. Choose a model "
                f"variant with group normalisation (GroupNorm)"
            )


def check_types(tensors: dict[str, torch.Tensor]) -> None:
    """Raise PrivacyError when a parameter to be noised is no floating-point tensor."""
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point:
            raise PrivacyError(
                f"parameter {name} is {tensor.dtype}; noise goes on floating-point tensors alone"
            )
