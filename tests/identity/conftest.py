"""Initial models that are made once for all tests."""

from __future__ import annotations

import pytest
from bench import run_job_once


@pytest.fixture(autouse=True)
def _models_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedserver.rounds.jobs.run_job", run_job_once)
