"""The study of what privacy costs keeps its runs, and only while they are of the same run files."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_runs_are_kept_while_their_run_files_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("report", None)
    import privacy_utility as study

    path, runs = tmp_path / "runs.json", {"release 8 0": 0.15, "ldp-sgd 0 0": 0.7}
    study.write_runs(runs, path)
    assert study.read_runs(path) == runs
    for changes in ({"clients": 61}, {"rounds": 9}, {"private": "clip = 1.0"}):
        other = {**study.STUDIES, "release": replace(study.STUDIES["release"], **changes)}
        with monkeypatch.context() as patch:
            patch.setattr(study, "STUDIES", other)
            assert study.read_runs(path) == {"ldp-sgd 0 0": 0.7}
    assert set(study.read_runs(study.KEPT)) >= {"release 8 0", "release 8 1"}
