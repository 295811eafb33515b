"""What training on a GPU needs beyond a device's name: exact arithmetic, and samples kept there."""

from __future__ import annotations

import weakref

import torch

from motley.training.evaluation import to_torch
from motley.workload import Split

LARGEST_SHARE = 0.5
"""Of a GPU's memory, beyond which no more samples are kept on it."""

Samples = tuple[torch.Tensor, torch.Tensor]
_kept: dict[tuple[int, str], Samples] = {}


def compute_exactly(device: str) -> None:
    """Let CUDA compute in float32, and convolutions repeat their results; else do nothing.

    The library's default keeps 10 bits of each factor (TF32), and takes whichever kernel is
    fastest, of which some add in no fixed order.
    """
    if torch.device(device).type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def resident(split: Split, device: str) -> Samples | None:
    """Return a split's (inputs, targets) on a GPU, where they stay as long as the split is there.

    A task would else send its samples to the GPU once more, batch by batch or as a whole. None on
    other devices, and where a GPU is half full.
    """
    if torch.device(device).type != "cuda":
        return None
    key = (id(split), device)
    if key not in _kept:
        if not has_room(split.inputs.nbytes, device):
            return None
        _kept[key] = to_torch(split, device)
        weakref.finalize(split, _kept.pop, key, None)
    return _kept[key]


def samples_on(split: Split, device: str) -> Samples:
    """Return a split's (inputs, targets) on a device: those kept there, or sent for this once."""
    return resident(split, device) or to_torch(split, device)


def has_room(size: int, device: str) -> bool:
    """Tell whether a GPU is less than half full with `size` bytes more."""
    free, all_of_it = torch.cuda.mem_get_info(device)
    return free - size >= LARGEST_SHARE * all_of_it
