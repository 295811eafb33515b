"""A user's workload for tests: one linear layer, and a way to misbehave.

The misbehaviour comes from the data spec: `synthetic?mode=kill&mark=FILE` misbehaves as long as
FILE is there, and removes it first, so that the next task goes well.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import torch

from motley.workload import DataSpec, LocalData, Split, Variant, Workload


class Linear(Workload):
    version = 3

    def __init__(self, mode: str = "") -> None:
        self._mode = mode
        self._mark = Path("/nonexistent")

    def variants(self):
        return {"linear": Variant(build=lambda: torch.nn.Linear(4, 3))}

    def load(self, spec: DataSpec) -> LocalData:
        print("loading data")  # must not disturb the daemon's pipe
        os.system("echo from a child process")
        self._mode = spec.options.get("mode", self._mode)
        self._mark = Path(spec.options.get("mark", "/nonexistent"))
        rng = np.random.default_rng(0)
        inputs = rng.normal(size=(40, 4)).astype(np.float32)
        targets = inputs[:, :3].argmax(axis=1).astype(np.int64)
        return LocalData(Split(inputs[:30], targets[:30]), Split(inputs[30:], targets[30:]))

    def loss(self, outputs, targets):
        print("{}")
        if self._mode and self._mark.exists():
            self._misbehave()
        return super().loss(outputs, targets)

    def _misbehave(self):
        if self._mode == "memory":
            torch.ones(4 * 1024**3 // 4)
        self._mark.unlink()
        if self._mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._mode == "raise":
            raise ValueError("a user's mistake")
        if self._mode == "hang":
            signal.pause()
