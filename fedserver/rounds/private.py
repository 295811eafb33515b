"""Private runs: their noise, and what their record says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedserver.errors import RunStateError
from fedserver.rounds.context import RunContext
from motley.errors import RunFileError
from motley.privacy import calibration
from motley.promises import given_noise, promises
from motley.runfile import RunFile


def refuse_unplannable(runfile: RunFile) -> None:
    """Raise RunFileError when noise is to be planned and this server cannot."""
    if set(promises(runfile)) - set(given_noise(runfile)) and not calibration.is_available():
        raise RunFileError(
            "settings.noise_multiplier: not given, and this server cannot plan it; install "
            "dp-accounting there (pip install dp-accounting), or give it"
        )


def refuse_extension(context: RunContext) -> None:
    """Raise RunStateError: more rounds than the noise was planned for break the promise."""
    if promises(context.runfile):
        raise RunStateError(
            f"run {context.name} ({context.id}) is private, and its noise was planned for "
            f"{context.runfile.run.rounds} rounds: more would spend more than it promised. Submit "
            f'a new run with init = "run:{context.name}"; what it spends comes on top'
        )


def noise_to_plan(runfile: RunFile) -> dict[str, Mapping[str, Any]]:
    """Return the guarantees whose noise is to be found, as plain values by tier."""
    given = given_noise(runfile)
    found = promises(runfile).items()
    return {name: guarantee.to_json() for name, guarantee in found if name not in given}


def statement(context: RunContext) -> dict[str, Any] | None:
    """Return what a run promises, and its mechanism, by tier; None for a run without privacy."""
    found = promises(context.runfile)
    if not found or context.model is None:
        return None
    noise = {**given_noise(context.runfile), **context.model.noise}
    return {name: guarantee.statement(noise[name]) for name, guarantee in found.items()}
