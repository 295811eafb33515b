"""What the log says of work that failed: a trace where the program is at fault, else the reason."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from bench import Bench, runfile
from test_durability import Rounds

from fedserver.errors import PreparationError
from fedserver.model_process import run_job


@pytest.mark.parametrize(
    ("error", "traced"),
    [(PreparationError("no model variant 'smal'"), False), (KeyError("weights"), True)],
)
def test_only_a_fault_of_the_server_is_logged_with_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, traced: bool
) -> None:
    bench = Bench(tmp_path)
    run_id = bench.runs.submit(runfile(), "test")

    def fails(_: Any) -> Any:
        raise error

    async def main() -> None:
        rounds = Rounds(bench)
        monkeypatch.setattr("fedserver.rounds.jobs.run_job", fails)
        await rounds.until(lambda: bench.record(run_id)["status"] == "failed")
        rounds.driver.close()
        rounds.database.close()

    with structlog.testing.capture_logs() as logs:
        asyncio.run(main())
    (told,) = (entry for entry in logs if entry["event"] == "job_failed")
    assert ("exc_info" in told, told.get("reason")) == (traced, None if traced else str(error))


def test_what_a_workload_says_when_it_fails_is_logged() -> None:
    job = {"kind": "held_out", "workload": "digits", "arguments": {}, "mappings": {}}
    with structlog.testing.capture_logs() as logs, pytest.raises(PreparationError, match="data"):
        run_job(job)
    (told,) = logs
    assert told["event"] == "job_output"
    assert "Traceback" in told["exception"]
    assert "KeyError: 'data'" in told["exception"]
