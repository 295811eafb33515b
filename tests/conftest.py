"""Shared by all tests: folders whose modules tests import, and initial models made once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import structlog

for folder in ("server", "integration", "simulate", "dashboard"):
    sys.path.insert(0, str(Path(__file__).parent / folder))


# Before torch is imported: processes that share the cores must not each take all of them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A stack trace drawn in colours takes seconds, and tests provoke some.
*_steps, _ = structlog.get_config()["processors"]
_plainly = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*_steps, _plainly])


@pytest.fixture(autouse=True)
def _models_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare tests within this process a child that imports torch for each run; see bench.py."""
    if "bench" in sys.modules:
        monkeypatch.setattr("fedserver.rounds.jobs.run_job", sys.modules["bench"].run_job_once)
