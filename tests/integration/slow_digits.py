"""The digits, with training that waits for as long as a file is there."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from motley.workloads.digits import Digits


class Slow(Digits):
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        while (Path(__file__).parent / "wait").exists():
            time.sleep(0.01)
        return super().loss(outputs, targets)
