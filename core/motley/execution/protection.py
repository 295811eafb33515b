"""What of a task may leave the device, where a guarantee of privacy is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from motley.algorithms.base import Algorithm, ClientContext, Trained
from motley.errors import MotleyError, PrivacyError, WithheldError
from motley.privacy.settings import guarantee_of
from motley.task import TaskKind


def is_protected(algorithm: Algorithm, context: ClientContext) -> bool:
    """Return whether only what a guarantee covers may leave this device.

    Raises:
        PrivacyError: the task would send something else, or there is no ledger to spend from.
    """
    task, privacy = context.task, context.privacy
    is_private = guarantee_of(algorithm.settings, task.rounds) is not None
    if is_private and privacy is None:
        raise PrivacyError(f"run {task.run_name} is private, and no privacy ledger is kept here")
    if not is_private and (privacy is None or not privacy.is_protected):
        return False
    if task.kind is TaskKind.TRAIN and not is_private:
        raise PrivacyError(
            f"run {task.run_name} trains without differential privacy, and this device takes part "
            f"in private runs alone: its owner set a privacy budget, or the run was private before"
        )
    if task.kind is TaskKind.EVALUATE:
        raise PrivacyError(
            f"run {task.run_name} asks for scores on this device's data, which no privacy budget "
            f"covers; evaluate on the server's own data (evaluate.held_out)"
        )
    return True


def covered(algorithm: Algorithm, context: ClientContext, trained: Trained) -> Trained:
    """Return what of a training task may leave this device: all, where the run is not private.

    Raises:
        PrivacyError: the run is private, and nothing was spent on noise.
    """
    if guarantee_of(algorithm.settings, context.task.rounds) is None:
        return trained
    if context.privacy is None or not context.privacy.has_spent:
        raise PrivacyError(f"{algorithm.name} trained without the noise that it promised")
    # Sample counts and losses are data, and no noise is on them.
    return replace(trained, samples=0, metrics={})


@contextmanager
def withholding(withheld: bool) -> Iterator[None]:
    """Where metrics are withheld, keep what user code says of its failures on the device, too.

    Its texts may quote records: a label that it does not know, a name that it cannot find.
    """
    try:
        yield
    except (MotleyError, OSError, MemoryError):
        raise
    except Exception as error:
        if not withheld:
            raise
        raise WithheldError(
            f"{type(error).__name__} in a private task; what it says may quote records and stays "
            f"in this device's own log, where its owner finds it"
        ) from error
