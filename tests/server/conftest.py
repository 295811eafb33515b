"""A bench for each test, and initial models that are made once for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import Bench, run_job_once


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(autouse=True)
def _models_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedserver.rounds.jobs.run_job", run_job_once)
