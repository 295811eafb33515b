"""A user's workload for tests: one linear layer, and a way to misbehave.

The data spec names a file: with `synthetic?mark=FILE` training misbehaves as FILE says (kill,
raise, hang, memory) as long as it is there. All but `memory` remove it first, so that the next
task goes well.
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

    def __init__(self) -> None:
        self._mark = Path("/nonexistent")

    def variants(self):
        return {"linear": Variant(build=lambda: torch.nn.Linear(4, 3))}

    def load(self, spec: DataSpec) -> LocalData:
        print("loading data")  # must not disturb the daemon's pipe
        os.system("echo from a child process")
        self._mark = Path(spec.options.get("mark", "/nonexistent"))
        rng = np.random.default_rng(0)
        inputs = rng.normal(size=(40, 4)).astype(np.float32)
        targets = inputs[:, :3].argmax(axis=1).astype(np.int64)
        return LocalData(Split(inputs[:30], targets[:30]), Split(inputs[30:], targets[30:]))

    def loss(self, outputs, targets):
        print("{}")
        if self._mark.exists():
            self._misbehave(self._mark.read_text())
        return super().loss(outputs, targets)

    def _misbehave(self, mode):
        if mode == "memory":
            torch.ones(4 * 1024**3 // 4)
        self._mark.unlink()
        if mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "raise":
            raise ValueError("a user's mistake")
        if mode == "hang":
            signal.pause()
