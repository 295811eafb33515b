"""Finished models on the device: the packed file, and what it scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedclient.disk import Disk
from fedclient.errors import OptionError
from fedclient.options import clients_directory
from fedclient.protocol import Metrics
from motley.workload import Scalar


class FinishedModel(BaseModel):
    """A run's result for this client; lies beside the model with the suffix `.json`."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    run_id: str
    run_name: str
    client: str = ""
    workload: str
    workload_version: int = 0
    """Of the code that built the model; 0 in records from before there was an export."""
    arguments: Mapping[str, Scalar] = Field(default_factory=dict)
    """Of the workload, from the run file."""
    variant: str = ""
    data: str = ""
    """Spec of the data that it was trained and scored on."""
    folder: str = ""
    """Where the client ran: paths in `data` count from there. "" in older records."""
    privacy: str = ""
    """The run's mode, "none" without one; "" in older records."""
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


@dataclass(frozen=True)
class StoredModel:
    """A finished model in the state directory of its client."""

    state: Path
    record: FinishedModel

    @property
    def path(self) -> Path:
        """The packed model."""
        return self.state / "models" / self.record.file

    @property
    def client(self) -> str:
        """The client's name; the folder's in records that hold none."""
        return self.record.client or self.state.name


def stored_models(state: Path | None) -> list[StoredModel]:
    """Return the finished models of one state directory, or of all clients of this user."""
    folders = [state] if state else sorted(clients_directory().glob("*"))
    return [
        StoredModel(folder, model)
        for folder in folders
        for model in finished_models(folder / "models")
    ]


def find_model(run: str, client: str, state: Path | None) -> StoredModel:
    """Return the finished model of a run.

    Args:
        run: its id, the beginning of one, or its name (then the newest run of that name).
        client: whose; "" where there is but one.
        state: the state directory to look in; None: those of all clients of this user.

    Raises:
        OptionError: there is none, or more than one client has one.
    """
    models = [model for model in stored_models(state) if client in ("", model.client)]
    found = [model for model in models if model.record.run_name == run]
    if found:
        newest = max(found, key=lambda model: model.path.stat().st_mtime_ns)
        found = [model for model in found if model.record.run_id == newest.record.run_id]
    else:
        found = [model for model in models if model.record.run_id.startswith(run)]
    if not found:
        known = ", ".join(sorted({f"{m.record.run_name} ({m.record.run_id})" for m in models}))
        raise OptionError(
            f"no finished model of run {run!r} on this device; there are: {known or 'none'}. "
            f"`fedclient models` lists them, --state names another state directory"
        )
    if len(found) > 1:
        whose = ", ".join(sorted({f"{m.client} ({m.record.run_id})" for m in found}))
        one_run = len({model.record.run_id for model in found}) == 1
        raise OptionError(
            f"{run!r} is the model of more than one client or run: {whose}; "
            + (f"name the client: --name {found[0].client}" if one_run else "give more of the id")
        )
    return found[0]
