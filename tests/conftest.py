"""Shared by all tests: folders whose modules tests import, a process that forks others, and initial
models made once."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

for folder in ("server", "integration", "simulate", "dashboard"):
    sys.path.insert(0, str(Path(__file__).parent / folder))

from forge import SHARED, Forge, OwnForge  # noqa: E402

# Before torch is imported: processes that share the cores must not each take all of them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A stack trace drawn in colours takes seconds, and tests provoke some.
*_steps, _ = structlog.get_config()["processors"]
_plainly = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*_steps, _plainly])


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage among modules and tests: they stay, and there are a million objects."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Give workers of `pytest -n` one forge for all; it imports nothing before it is needed."""
    if not config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        return
    folder = tempfile.TemporaryDirectory(prefix="forge-")
    config.add_cleanup(folder.cleanup)
    forge = OwnForge(Path(folder.name))
    config.add_cleanup(forge.close)
    os.environ[SHARED] = str(forge.socket)


@pytest.fixture(autouse=True)
def _models_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare tests within this process children that import torch for each run; see bench.py."""
    if "bench" in sys.modules:
        monkeypatch.setattr("fedserver.rounds.jobs.run_job", sys.modules["bench"].run_job_once)


@pytest.fixture(autouse=True)
def _children_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a server within a worker of `pytest -n` start them from the forge, as one of its own."""
    if SHARED in os.environ and "fedserver.model_process" in sys.modules:
        command = Forge(Path(os.environ[SHARED])).command("fedserver.model_process")
        monkeypatch.setattr("fedserver.model_process.COMMAND", command)
