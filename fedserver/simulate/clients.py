"""The devices of a simulation: their data, their personal states, and how they do tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedserver.simulate.population import Population
from motley.algorithms.base import Tensors
from motley.privacy.ledger import Entry, Labels, MemoryStore, noise_labels
from motley.privacy.noise import derive_key
from motley.states import PlainFiles, StateFiles
from motley.task import TaskSpec
from motley.workload import DataSpec, Workload

if TYPE_CHECKING:
    from motley.execution.executor import Executor, Outcome, PersonalStore
    from motley.execution.together import Assignment


@dataclass(frozen=True, kw_only=True)
class Work:
    """A task, and where its files lie."""

    task: TaskSpec
    broadcast: Path | None
    update: Path
    """Where a training task writes its encoded update."""
    model: Path
    """Where a finishing task writes the packed model."""


class MemoryStates:
    """A `PersonalStore` that goes with the process: the counted state and the uncounted one."""

    def __init__(self) -> None:
        self._states: dict[str, Tensors] = {}

    def load(self, version: str) -> Tensors | None:
        """Return the state of `version`, which is the counted one from now on."""
        self._states = {v: state for v, state in self._states.items() if v == version}
        return self._states.get(version)

    def save(self, version: str, tensors: Tensors) -> None:
        """Keep a new, uncounted state beside the counted one."""
        while len(self._states) > 1:
            self._states.popitem()
        self._states[version] = tensors


class SimulatedPrivacy(MemoryStore):
    """A `PrivacyStore` whose noise a task decides alone: reproducible, and secret to nobody."""

    @classmethod
    def of(cls, seed: int, client: str) -> SimulatedPrivacy:
        """Return the store of a client in a run of that seed."""
        return cls(derive_key(str(seed).encode(), "simulation", client))

    def fresh(self) -> tuple[str, float]:
        """Return no nonce: a simulation that goes on after a kill ends in the same model."""
        return "", 0.0

    def labels(self, entry: Entry) -> Labels:
        """Leave the run's id out, which is another each time."""
        return noise_labels(entry)[1:]


class Clients:
    """All simulated devices. Data is read when a client first needs it, then kept."""

    def __init__(
        self, population: Population, workload: Workload, states: Path | None, device: str
    ) -> None:
        """Make the clients of a run.

        Args:
            population: who they are.
            workload: what they train; shared by all.
            states: folder of their personal states; None: in memory.
            device: torch's name of what trains, e.g. "cpu" or "cuda".
        """
        self._specs = {client.name: client.data for client in population.clients}
        self._workload, self._folder, self._device = workload, states, device
        self._executors: dict[str, Executor] = {}
        self._states: dict[str, PersonalStore] = {}
        self._privacy: dict[str, SimulatedPrivacy] = {}

    def do(self, work: Sequence[Work], batch: int) -> list[Outcome | Exception]:
        """Do tasks, up to `batch` that can at once; return what came of each, in order."""
        import torch

        from motley.execution.together import run_together

        torch.set_num_threads(work[0].task.threads)
        if len(work) == 1:
            return [self._alone(work[0])]
        ready: list[Assignment] = []
        failed: dict[int, Exception] = {}
        for number, one in enumerate(work):
            try:
                ready.append(self._assignment(one))
            except Exception as error:
                failed[number] = error
        results = iter(run_together(ready, batch))
        return [failed.get(n) or next(results) for n in range(len(work))]

    def _alone(self, work: Work) -> Outcome | Exception:
        try:
            return self._assignment(work).run()
        except Exception as error:  # as on a device: what user code raises ends its task alone
            return error

    def _assignment(self, work: Work) -> Assignment:
        from motley.execution.together import Assignment

        return Assignment(
            executor=self._executor(work.task.client),
            task=work.task,
            personal=self._personal(work.task.client),
            broadcast=work.broadcast,
            update=work.update,
            model=work.model,
            privacy=self._ledger(work.task),
        )

    def _executor(self, client: str) -> Executor:
        from motley.execution.executor import Executor

        if client not in self._executors:
            data = self._workload.load(DataSpec.parse(self._specs[client]))
            another = next(iter(self._executors.values()), None)
            self._executors[client] = (
                another.over(data) if another else Executor(self._workload, data, self._device)
            )
        return self._executors[client]

    def _ledger(self, task: TaskSpec) -> SimulatedPrivacy:
        if task.client not in self._privacy:
            self._privacy[task.client] = SimulatedPrivacy.of(task.run_seed, task.client)
        return self._privacy[task.client]

    def _personal(self, client: str) -> PersonalStore:
        if client not in self._states:
            self._states[client] = (
                StateFiles(self._folder / client, PlainFiles()) if self._folder else MemoryStates()
            )
        return self._states[client]
