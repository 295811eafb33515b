"""Loss and metrics of a model on a split."""

from __future__ import annotations

import numpy as np
import torch

from motley.workload import Split, Workload


def to_torch(split: Split, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (inputs, targets) as tensors on `device`, sharing memory where that is possible."""
    inputs = torch.from_numpy(np.ascontiguousarray(split.inputs)).to(device)
    targets = torch.from_numpy(np.ascontiguousarray(split.targets)).to(device)
    return inputs, targets


@torch.no_grad()
def evaluate(
    module: torch.nn.Module, workload: Workload, split: Split, device: str = "cpu", batch: int = 500
) -> dict[str, float]:
    """Return "loss", the workload's metrics (means over the split) and "samples".

    The module is put in evaluation mode and back. An empty split gives {"samples": 0.0}.
    """
    totals: dict[str, float] = {}
    was_training = module.training
    module.eval()
    inputs, targets = to_torch(split, device)
    for start in range(0, len(split), batch):
        y = targets[start : start + batch]
        outputs = module(inputs[start : start + batch])
        values = {"loss": workload.loss(outputs, y), **workload.metrics(outputs, y)}
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + float(value.double().sum())
    module.train(was_training)
    means = {name: total / len(split) for name, total in totals.items()}
    return {**means, "samples": float(len(split))}
