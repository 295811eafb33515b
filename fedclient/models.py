"""Finished models on the device: the packed file, and what it scored."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedclient.disk import Disk
from fedclient.protocol import Metrics


class FinishedModel(BaseModel):
    """A run's result for this client; lies beside the model with the suffix `.json`."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    run_name: str
    workload: str
    algorithm: str
    rounds: int
    file: str
    """Name of the packed model, a payload in named mode (docs/wire-format.md)."""
    size: int
    """Bytes of the packed model."""
    metrics: Metrics = Field(default_factory=dict)
    """Of the packed file as it was read again."""


def record(model: Path, finished: FinishedModel, disk: Disk) -> None:
    """Write a finished model's metrics; with them the model counts as complete."""
    disk.write(model.with_suffix(".json"), finished.model_dump_json(indent=1).encode())


def finished_models(directory: Path) -> list[FinishedModel]:
    """Return the complete models of a `models/` folder, in order of file name."""
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            model = FinishedModel.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
        if (directory / model.file).exists():
            found.append(model)
    return found
