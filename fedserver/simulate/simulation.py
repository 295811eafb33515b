"""A run with all of its clients in this process: the server's engine, without a network.

The record, the payload files, the checks and the fold are the server's own; what a client does is
`motley.execution`'s, as on a device. With a batch of 1 a simulation ends in the same global model
as the same run over gRPC, bit for bit, on the same kind of processor, library versions and thread
count.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from structlog.stdlib import get_logger

from fedserver.errors import SimulationError
from fedserver.rounds.engine import Engine
from fedserver.rounds.operations import RunDesk
from fedserver.rounds.view import run_record
from fedserver.simulate.clients import Clients
from fedserver.simulate.loop import Loop
from fedserver.simulate.models import ModelsHere
from fedserver.simulate.population import Everyone, Population, population_of
from fedserver.simulate.progress import Silence, Watcher
from fedserver.storage.database import lock_directory, open_database
from fedserver.storage.open_files import allow_many_files
from fedserver.storage.payloads import PayloadStore
from fedserver.storage.schema import runs, tasks
from motley import plugins
from motley.algorithms import registry
from motley.data.shared import sharing
from motley.runfile import RunFile, parse
from motley.wire.durable import replacing, unsynced
from motley.workload import Workload

log = get_logger()


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """What became of a simulated run."""

    run_id: str
    status: str
    """"finished", or "paused" or "failed" with `reason`."""
    reason: str
    record: Mapping[str, Any]
    """The run whole, as `fedserver show --json` prints it."""
    seconds: float
    """Of this call: less than the run's own where an earlier call began it."""
    client_steps: int
    """Local steps that this call's clients took, all together."""


def simulate(
    text: str,
    *,
    population: Population | None = None,
    directory: Path | None = None,
    source: str = "run file",
    mappings: Mapping[str, str] | None = None,
    batch: int = 1,
    device: str = "cpu",
    watcher: Watcher | None = None,
) -> SimulationResult:
    """Run a run file with its clients in this process.

    Called again with the same arguments after it was killed, it goes on and ends in the same model;
    of a run that has ended it returns the record.

    Args:
        text: the run file.
        population: the clients; default: what the run file's `[simulate]` says.
        directory: data directory for record, models and personal states; None: a temporary one.
        source: what errors call the run file.
        mappings: `module:object` by workload name.
        batch: clients that train at the same time.
        device: what they train on, e.g. "cpu" or "cuda".
        watcher: hears what happens.

    Raises:
        RunFileError, PopulationError, WorkloadError: nothing was begun.
        DataDirectoryError: the directory is in use, or not one of this program.
        SimulationError: the directory holds another run that is not over, or the run cannot go on.
    """
    began = time.monotonic()
    runfile = parse(text, source)
    population = (population or population_of(runfile)).ready(batch)
    mappings = dict(mappings or {})
    workload = plugins.create(runfile.workload.name, mappings, runfile.workload.arguments)
    with ExitStack() as stack:
        if directory is None:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="motley-simulation-"))
            root = Path(place)
        else:
            root = directory
        stack.enter_context(sharing())
        setting = Setting(runfile, population, workload, batch, device, mappings)
        place_of = stack.enter_context(_opened(root, setting))
        run_id = place_of.run_of(text, source)
        trained = place_of.go_on(run_id, keep=directory is not None, watcher=watcher or Silence())
        record = run_record(place_of.engine, run_id)
    algorithm = registry.find(runfile.run.algorithm).configure(runfile.settings)
    return SimulationResult(
        run_id=run_id,
        status=record["status"],
        reason=record["reason"],
        record=record,
        seconds=time.monotonic() - began,
        client_steps=trained * algorithm.local_steps,
    )


@dataclass(frozen=True)
class Setting:
    """What a simulation was called with."""

    runfile: RunFile
    population: Population
    workload: Workload
    batch: int
    device: str
    mappings: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return what has to be the same when a run goes on."""
        return {
            "population": self.population.to_json(),
            "batch": self.batch,
            "device": self.device,
        }


@contextmanager
def _opened(root: Path, setting: Setting) -> Iterator[_Place]:
    """Open a data directory for one simulation, without syncs."""
    allow_many_files()
    with ExitStack() as stack:
        lock = lock_directory(root)
        stack.callback(lock.close)
        stack.enter_context(unsynced())
        database = open_database(root, synced=False)
        stack.callback(database.dispose)
        payloads = PayloadStore(root)
        place = _Place(root, setting, payloads)
        place.engine = Engine(
            database,
            Everyone(setting.population, setting.runfile, type(setting.workload).version),
            payload_path=payloads.path,
            mappings=setting.mappings,
            notify=place.wake,
            timed=False,
        )
        place.engine.recover()
        yield place


class _Place:
    """An open data directory, and the run that is simulated in it."""

    engine: Engine

    def __init__(self, root: Path, setting: Setting, payloads: PayloadStore) -> None:
        self._root, self._setting, self._payloads = root, setting, payloads
        self._loop: Loop | None = None

    def wake(self, clients: Any) -> None:
        """Hand on which clients have new tasks."""
        if self._loop is not None:
            self._loop.wake(clients)

    def run_of(self, text: str, source: str) -> str:
        """Return the id of the directory's run of this very file, submitting it if there is none.

        Raises:
            SimulationError: another run is not over, or this one was begun with other clients.
        """
        desk = RunDesk(self.engine)
        with self.engine.database.connect() as tx:
            rows = tx.execute(select(runs).order_by(runs.c.sequence.desc())).all()
            at_work = select(tasks.c.run).where(tasks.c.status.in_(("offered", "taken")))
            unfinished = set(tx.scalars(at_work.distinct()))
        row = next((row for row in rows if row.runfile == text), None)
        for other in rows:
            # A finished run may have clients whose models are not written yet.
            over = other.status in ("finished", "stopped", "failed", "paused")
            over = over and other.id not in unfinished
            if not over and (row is None or other.id != row.id):
                missing = " but for models of clients" if other.status == "finished" else ""
                raise SimulationError(
                    f"{self._root} holds run {other.name} ({other.id}), which is {other.status}"
                    f"{missing}; finish it with the command that began it, or give another --data"
                )
        run_id = row.id if row is not None else desk.submit(text, source)
        self._check_setting(run_id, is_new=row is None)
        if row is not None and row.status in ("paused", "stopped", "failed"):
            desk.resume(run_id)
        return run_id

    def _check_setting(self, run_id: str, *, is_new: bool) -> None:
        folder = self._root / "simulation" / run_id
        folder.mkdir(parents=True, exist_ok=True)
        path, mine = folder / "setting.json", self._setting.to_json()
        if not path.exists():
            with replacing(path) as stream:  # whole, or a killed simulation could not go on
                stream.write(json.dumps(mine).encode())
        elif json.loads(path.read_text()) != json.loads(json.dumps(mine)):
            raise SimulationError(
                f"run {run_id} in {self._root} was begun with other clients, another --batch or "
                f"--device ({path}); go on with the same ones, or give another --data"
            )

    def go_on(self, run_id: str, *, keep: bool, watcher: Watcher) -> int:
        """Move a run on until it ends; return how many training tasks were done.

        `keep`: whether personal states and finished models outlive this process.
        """
        setting, folder = self._setting, self._root / "simulation" / run_id
        finished = folder / "models"
        finished.mkdir(exist_ok=True)
        method = registry.find(setting.runfile.run.algorithm)
        own_models = method.has_personal_models() or method.tiers_choose_bits
        self._loop = Loop(
            self.engine,
            self._payloads,
            Clients(
                setting.population,
                setting.workload,
                folder / "states" if keep else None,
                setting.device,
            ),
            ModelsHere(setting.workload, setting.device),
            run_id=run_id,
            # Where no client ends with a model of its own, the global one is kept once.
            finished=finished if keep and own_models else None,
            batch=setting.batch,
            watcher=watcher,
        )
        self._loop.run()
        return self._loop.trained
