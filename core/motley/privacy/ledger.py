"""What a device has spent, over all rounds of all runs: put on record before any noise is drawn.

An entry is one task. It is durable before its key is known to the caller, so that a crash at any
later moment has spent, and a task that begins again spends again and draws other noise. The device
supplies the storage (`PrivacyStore`); what may be spent is decided here.

Two budgets bind. The run's own (ε, δ), which the server planned for, counts the run's entries in
the run's unit. The owner's, if there is one, counts all entries of the device for one *record*. A
release counts there with half its noise multiplier: a record added or removed can move a clipped
update from any point of the ball of radius C to any other, by up to 2C.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from motley.errors import PrivacyBudgetError, PrivacyError
from motley.privacy.guarantee import UNITS, Guarantee, Mode, Unit
from motley.privacy.noise import derive_key
from motley.privacy.rdp import (
    NOTHING,
    SMALLEST_NOISE,
    Divergences,
    compose,
    epsilon_at,
    sampled_gaussian,
)
from motley.privacy.settings import TOLERANCE, noise_fault
from motley.task import TaskSpec


class Budget(BaseModel):
    """What the owner of a device allows all runs together to spend of one record's privacy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float = Field(gt=0, lt=1)


class Entry(BaseModel):
    """What one task spent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    """The run's id."""
    run_name: str
    task: str
    round: int
    attempt: int
    model: str
    """SHA-256 of the broadcast that the task starts from, hex."""
    mode: Mode
    noise_multiplier: float = Field(ge=SMALLEST_NOISE, allow_inf_nan=False)
    sampling_rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    epsilon: float = Field(gt=0, allow_inf_nan=False)
    """With `delta`: what the run promised."""
    delta: float = Field(gt=0, lt=1)
    nonce: str
    """Random, hex: it goes into the key, so that not even a restored copy of the secret and of this
    record draws the same noise twice."""
    at: float = 0.0
    """Wall clock, seconds since 1970."""


Labels = tuple[str | int, ...]


def noise_labels(entry: Entry) -> Labels:
    """Return what a task's key is derived from besides the secret."""
    return entry.run, entry.round, entry.attempt, entry.model, entry.nonce


class PrivacyStore(Protocol):
    """Where a device keeps its secret, its record and its owner's budget."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep all others from spending."""

    def secret(self) -> bytes:
        """Return 32 bytes that never leave the device; made when first asked for."""

    def budget(self) -> Budget | None:
        """Return the owner's budget; None: no bound but the runs' own."""

    def entries(self) -> Sequence[Entry]:
        """Return all entries, oldest first; raise PrivacyLedgerError when they are not whole."""

    def append(self, entry: Entry) -> None:
        """Add an entry; it is durable when this returns."""

    def fresh(self) -> tuple[str, float]:
        """Return (a nonce, hex; the wall clock)."""

    def labels(self, entry: Entry) -> Labels:
        """Return what a task's key is derived from besides the secret: `noise_labels`."""


@dataclass
class MemoryStore:
    """A store without a disk, for simulations and tests, which may fix the key."""

    key: bytes
    owner: Budget | None = None
    kept: list[Entry] = field(default_factory=list)

    def exclusive(self) -> AbstractContextManager[None]:
        """Nobody else has it."""
        from contextlib import nullcontext

        return nullcontext()

    def secret(self) -> bytes:
        """Return the given key."""
        return self.key

    def budget(self) -> Budget | None:
        """Return the given budget."""
        return self.owner

    def entries(self) -> Sequence[Entry]:
        """Return the entries so far."""
        return tuple(self.kept)

    def append(self, entry: Entry) -> None:
        """Keep an entry."""
        self.kept.append(entry)

    def fresh(self) -> tuple[str, float]:
        """Return a count instead of a random number: the same key then gives the same noise."""
        return f"{len(self.kept):032x}", 0.0

    def labels(self, entry: Entry) -> Labels:
        """Return run, round, attempt, model and nonce."""
        return noise_labels(entry)


def divergences_of(entries: Iterable[Entry], unit: Unit) -> Divergences:
    """Return the composed divergences of entries, for a record or for a client's releases.

    Raises:
        PrivacyError: `unit` is a client's release, and an entry protects records alone.
    """
    counts: dict[tuple[float, float], int] = {}
    for entry in entries:
        z = entry.noise_multiplier
        if entry.mode == "ldp-sgd" and unit == "client-release":
            raise PrivacyError(
                f"task {entry.task} protects records, and says nothing of a client's whole data"
            )
        if entry.mode == "release" and unit == "record":
            z = z / 2
        mechanism = (z, entry.sampling_rate)
        counts[mechanism] = counts.get(mechanism, 0) + entry.steps
    total = NOTHING
    for (z, q), steps in sorted(counts.items()):
        total = compose(total, sampled_gaussian(z, q), steps)
    return total


def spent(entries: Sequence[Entry], delta: float, unit: Unit) -> float:
    """Return ε at δ of entries; see `divergences_of`."""
    return epsilon_at(divergences_of(entries, unit), delta)


class TaskPrivacy:
    """One task's access to a device's store: it spends once, and only then has a key."""

    def __init__(self, store: PrivacyStore, task: TaskSpec) -> None:
        self._store, self._task = store, task
        self.has_spent = False

    @property
    def is_protected(self) -> bool:
        """Whether nothing may leave without a guarantee: there is a budget, or this run spent."""
        run = self._task.run_id
        entries = self._store.entries()
        return self._store.budget() is not None or any(entry.run == run for entry in entries)

    def spend(self, guarantee: Guarantee, noise_multiplier: float) -> bytes:
        """Put this task's noisy steps on record; return the secret key of its noise (32 bytes).

        Raises:
            PrivacyError: the noise does not keep the run's promise, or was used before.
            PrivacyBudgetError: the run's or the owner's budget does not cover it.
            PrivacyLedgerError: what was spent before cannot be read.
        """
        if self.has_spent:
            raise PrivacyError(f"task {self._task.task_id} would draw the same noise twice")
        fault = noise_fault(guarantee, noise_multiplier)
        if fault:
            raise PrivacyError(fault)
        store = self._store
        with store.exclusive():
            before = store.entries()
            entry = self._entry(guarantee, noise_multiplier)
            _check_noise_is_new(before, entry)
            _check_run(before, entry)
            _check_owner(before, entry, store.budget())
            secret = store.secret()
            store.append(entry)
        self.has_spent = True
        return derive_key(secret, *store.labels(entry))

    def _entry(self, guarantee: Guarantee, noise_multiplier: float) -> Entry:
        task = self._task
        nonce, now = self._store.fresh()
        return Entry(
            run=task.run_id,
            run_name=task.run_name,
            task=task.task_id,
            round=task.round,
            attempt=task.attempt,
            model=task.payload_sha256.hex(),
            mode=guarantee.mode,
            noise_multiplier=noise_multiplier,
            sampling_rate=guarantee.sampling_rate,
            steps=guarantee.steps_per_task,
            epsilon=guarantee.epsilon,
            delta=guarantee.delta,
            nonce=nonce,
            at=now,
        )


def _check_noise_is_new(before: Sequence[Entry], entry: Entry) -> None:
    for old in before:
        if (old.task, old.nonce) == (entry.task, entry.nonce):
            raise PrivacyError(
                f"task {entry.task} would use noise that was used before, which would take the "
                f"noise away; the device's source of random numbers repeats itself"
            )


def _check_run(before: Sequence[Entry], entry: Entry) -> None:
    """Raise PrivacyBudgetError when the run spends more than it promised."""
    mine = [old for old in before if old.run == entry.run]
    for old in mine:
        if (old.mode, old.epsilon, old.delta) != (entry.mode, entry.epsilon, entry.delta):
            raise PrivacyError(
                f"run {entry.run_name} promised epsilon {old.epsilon:g} at delta {old.delta:g} "
                f"({old.mode}) before, and now epsilon {entry.epsilon:g} at delta {entry.delta:g} "
                f"({entry.mode}); a promise stands: submit a new run"
            )
    unit = UNITS[entry.mode]
    after = spent([*mine, entry], entry.delta, unit)
    if after > entry.epsilon * (1 + TOLERANCE):
        raise PrivacyBudgetError(
            f"run {entry.run_name} has spent its privacy budget on this device: "
            f"{spent(mine, entry.delta, unit):.4g} of epsilon {entry.epsilon:g} at delta "
            f"{entry.delta:g} in {len(mine)} tasks, and one more would make it {after:.4g}; "
            f"training stops here"
        )


def _check_owner(before: Sequence[Entry], entry: Entry, budget: Budget | None) -> None:
    """Raise PrivacyBudgetError when all runs together spend more than the owner allows."""
    if budget is None:
        return
    after = spent([*before, entry], budget.delta, "record")
    if after > budget.epsilon * (1 + TOLERANCE):
        raise PrivacyBudgetError(
            f"the privacy budget of this device is spent: "
            f"{spent(before, budget.delta, 'record'):.4g} of epsilon {budget.epsilon:g} at delta "
            f"{budget.delta:g}, and a task of run {entry.run_name} would make it {after:.4g}; its "
            f"owner may allow more with --privacy-budget"
        )
