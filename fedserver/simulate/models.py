"""The server's own work with models, done in this process: a simulation has torch here anyway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedserver.model_process import prepare, score
from motley.workload import DataSpec, Split, Workload


class ModelsHere:
    """What `model_process.run_job` does in a child; held-out samples are read once."""

    def __init__(self, workload: Workload, device: str) -> None:
        self._workload, self._device = workload, device
        self._splits: dict[str, Split] = {}

    def __call__(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Do a job that needs torch."""
        if job["kind"] == "prepare":
            return prepare(job)
        spec = job["data"]
        if spec not in self._splits:
            self._splits[spec] = self._workload.held_out(DataSpec.parse(spec))
        return score(job, self._workload, self._splits[spec], self._device)
