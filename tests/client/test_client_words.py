"""Words of a server and of run files on the owner's terminal: shown as they are, no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedclient import cli, tables
from fedclient.errors import RefusedError
from fedclient.models import FinishedModel, StoredModel
from motley.checkup.findings import problem, report

ODD = "[/x] \x1b[2J"
SHOWN = "[/x] \\x1b[2J"


def test_the_table_of_models(capsys: pytest.CaptureFixture[str]) -> None:
    record = FinishedModel(
        run_id="r1", run_name=ODD, workload=ODD, algorithm="quped", rounds=1, file="m", size=1
    )
    tables.show(tables.models_table([StoredModel(state=Path("c0"), record=record)]))
    found = capsys.readouterr().out
    assert "\x1b" not in found
    assert found.count(SHOWN) == 2


def test_what_a_doctor_found(capsys: pytest.CaptureFixture[str]) -> None:
    report([problem("server", f"does not answer: {ODD}", ODD, ODD)], json_output=False)
    found = capsys.readouterr().out
    assert "\x1b" not in found
    assert found.count(SHOWN) == 3


def test_a_refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refused() -> None:
        raise RefusedError(f"the server says {ODD}")

    monkeypatch.setattr(cli, "app", refused)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == f"fedclient: the server says {SHOWN} [M2101]\n"
