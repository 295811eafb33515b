"""`fedserver doctor` and `fedclient doctor` beside a real server and a device that joined."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from federation import Federation, federation

pytestmark = pytest.mark.processes


def doctor(module: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Return the exit status and the findings by name."""
    done = subprocess.run(
        [sys.executable, "-m", f"{module}.cli", "doctor", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout, done.stderr
    return done.returncode, {f["what"]: f for f in json.loads(done.stdout)["findings"]}


def server_doctor(found: Federation, *options: str) -> tuple[int, dict[str, Any]]:
    return doctor("fedserver", "--data", str(found.data), *options)


def test_doctors_find_what_is_well_and_what_is_not(tmp_path: Path) -> None:
    with federation(tmp_path, []) as found:
        found.serve("--metrics", "127.0.0.1:0")
        metrics = found.ports["metrics"]
        assert found.join("phone-1").returncode == 0
        state = ["--state", str(tmp_path / "phone-1")]

        status, findings = server_doctor(found)
        assert status == 0, findings
        assert {f["verdict"] for f in findings.values()} == {"ok"}
        assert findings["server"]["found"] == "answers; 0 runs on record"
        assert "renewed by the server from" in findings["certificate"]["found"]
        for name, address in (
            ("client", found.address), ("join", found.join_address), ("metrics", metrics)
        ):  # fmt: skip
            assert findings[f"{name} port"]["found"] == f"{address} takes connections"
        status, findings = server_doctor(found, "--listen", "127.0.0.1:1")
        assert (status, findings["client port"]["verdict"]) == (1, "problem")

        status, findings = doctor("fedclient", *state)
        assert status == 0, findings
        assert {f["verdict"] for f in findings.values()} == {"ok"}
        assert f"{found.address} answers in" in findings["server"]["found"]
        assert "the server's" in findings["clock"]["found"]
        assert "torch" in findings

        found.terminate("server")
        (tmp_path / "phone-1/identity/client.pem").chmod(0o644)
        status, findings = doctor("fedclient", *state)
        assert status == 1
        assert findings["key"]["commands"][0].startswith("chmod 600")
        assert "holds a private key and others can use it" in findings["identity"]["found"]
        (tmp_path / "phone-1/identity/client.pem").chmod(0o600)
        assert doctor("fedclient", *state)[1]["server"]["verdict"] == "problem"
        status, findings = server_doctor(found)
        assert status == 0
        assert findings["server"]["verdict"] == "warning"
        assert findings["client port"]["found"] == f"{found.address} is free"
        assert findings["metrics port"]["found"] == f"{metrics} is free"
        (start,) = findings["server"]["commands"]
        assert start == f"fedserver serve --data {found.data}"


def test_a_server_in_plain_text_is_known_as_such(tmp_path: Path) -> None:
    with federation(tmp_path) as found:
        found.serve()
        status, findings = server_doctor(found)
        assert status == 0, findings
        assert findings["client port"]["found"] == f"{found.address} takes connections"
        assert not {"join port", "authority"} & findings.keys()
