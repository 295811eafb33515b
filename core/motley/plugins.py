"""Workloads by name: what this machine's owner mapped, and what is installed.

A name comes from a run; the code it stands for comes from `--workload NAME=module:object` or
from an installed entry point in the group `motley.workloads`, never from the other side.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from motley.errors import WorkloadError, did_you_mean
from motley.workload import Scalar, Workload

GROUP = "motley.workloads"


def parse_mappings(options: list[str]) -> dict[str, str]:
    """Read `NAME=module:object` options; raise WorkloadError on another form."""
    mappings = {}
    for option in options:
        name, _, target = option.partition("=")
        module, _, attribute = target.partition(":")
        if not (name and module and attribute):
            raise WorkloadError(f"--workload {option!r}: expected NAME=module:object")
        mappings[name] = target
    return mappings


def available(mappings: Mapping[str, str]) -> dict[str, str]:
    """Return `module:object` by name: installed entry points, with `mappings` on top."""
    return {**_installed(), **mappings}


@cache
def _installed() -> Mapping[str, str]:
    """Return the entry points; to find them, the files of every installed package are read."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def find(name: str, mappings: Mapping[str, str]) -> str:
    """Return the `module:object` of a name, importing nothing; raise WorkloadError without one."""
    known = available(mappings)
    if name not in known:
        raise WorkloadError(
            f"workload {name!r} is not mapped on this machine; start with "
            f"--workload {name}=module:object (known: {', '.join(sorted(known)) or 'none'})"
            f"{did_you_mean(name, known)}"
        )
    return known[name]


def _look_where_started() -> None:
    """Let imports find the working folder: a user's module usually lies there."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def check(name: str, mappings: Mapping[str, str]) -> None:
    """Raise WorkloadError unless the module of a name is there; imports nothing of it."""
    target = find(name, mappings)
    module = target.partition(":")[0]
    _look_where_started()
    try:
        spec = find_spec(module)
    except ImportError:
        spec = None
    if spec is None:
        raise WorkloadError(
            f"workload {name!r} maps to {target}, but there is no module {module}; start in its "
            f"folder, or put that on PYTHONPATH"
        )


def resolve(name: str, mappings: Mapping[str, str]) -> type[Workload]:
    """Return the class a name stands for on this machine.

    Raises:
        WorkloadError: the name is not mapped, cannot be imported, or is no Workload.
    """
    target = find(name, mappings)
    module, _, attribute = target.partition(":")
    _look_where_started()
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise WorkloadError(f"workload {name!r} maps to {target}, which fails: {error}") from error
    if not (inspect.isclass(found) and issubclass(found, Workload)):
        raise WorkloadError(
            f"workload {name!r} maps to {target}, which is no subclass of motley.workload.Workload"
        )
    return found


def create(name: str, mappings: Mapping[str, str], arguments: Mapping[str, Scalar]) -> Workload:
    """Resolve a workload and build it with a run's arguments.

    Raises:
        WorkloadError: as `resolve`, or the arguments do not fit.
    """
    found = resolve(name, mappings)
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        raise WorkloadError(
            f"workload {name!r}: {error}; it takes {inspect.signature(found)}"
        ) from None
    return found(**arguments)
