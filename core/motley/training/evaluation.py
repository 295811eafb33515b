"""Loss and metrics of a model on a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from motley.workload import Split, Workload


def to_torch(split: Split, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (inputs, targets) as tensors on `device`, sharing memory where that is possible."""
    inputs = torch.from_numpy(np.ascontiguousarray(split.inputs)).to(device)
    targets = torch.from_numpy(np.ascontiguousarray(split.targets)).to(device)
    return inputs, targets


def evaluate(
    module: torch.nn.Module, workload: Workload, split: Split, device: str = "cpu", batch: int = 500
) -> dict[str, float]:
    """Return "loss", the workload's metrics (means over the split) and "samples".

    The module is put in evaluation mode and back. An empty split gives {"samples": 0.0}.
    """
    return evaluate_all(module, workload, [split], device, batch)[0]


@torch.no_grad()
def evaluate_all(
    module: torch.nn.Module,
    workload: Workload,
    splits: Sequence[Split],
    device: str = "cpu",
    batch: int = 500,
) -> list[dict[str, float]]:
    """Return what `evaluate` does for each of many splits, in as few passes as they need."""
    was_training = module.training
    module.eval()
    totals: list[dict[str, float]] = [{} for _ in splits]
    for group in _grouped(splits, batch):
        joined = splits[group[0]]
        if len(group) > 1:
            joined = Split(
                np.concatenate([splits[number].inputs for number in group]),
                np.concatenate([splits[number].targets for number in group]),
            )
        owners = torch.tensor([n for n in group for _ in range(len(splits[n]))])
        for values, own in _values(module, workload, joined, owners, device, batch):
            for number in set(own.tolist()):
                mine = own == number
                for name, value in values.items():
                    total = float(value[mine].sum())
                    totals[number][name] = totals[number].get(name, 0.0) + total
    module.train(was_training)
    return [
        {**{n: t / len(split) for n, t in total.items()}, "samples": float(len(split))}
        for total, split in zip(totals, splits, strict=True)
    ]


def _grouped(splits: Sequence[Split], batch: int) -> Iterator[list[int]]:
    """Yield numbers of splits that fill a batch together; a large one is alone."""
    group: list[int] = []
    filled = 0
    for number, split in enumerate(splits):
        if group and filled + len(split) > batch:
            yield group
            group, filled = [], 0
        group.append(number)
        filled += len(split)
    if group:
        yield group


def _values(
    module: torch.nn.Module,
    workload: Workload,
    split: Split,
    owners: torch.Tensor,
    device: str,
    batch: int,
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Yield (loss and metrics of each sample as float64 on the CPU, owners of the samples)."""
    inputs, targets = to_torch(split, device)
    for start in range(0, len(split), batch):
        y = targets[start : start + batch]
        outputs = module(inputs[start : start + batch])
        values = {"loss": workload.loss(outputs, y), **workload.metrics(outputs, y)}
        yield (
            {name: value.double().cpu() for name, value in values.items()},
            owners[start : start + batch],
        )
