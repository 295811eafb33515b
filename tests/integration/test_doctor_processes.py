"""`fedserver doctor` and `fedclient doctor` beside a real server and a device that joined."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from federation import federation

pytestmark = pytest.mark.processes

SMALL_TORCH = """
from types import SimpleNamespace
__version__, get_num_threads = "0", lambda: 1
cuda = SimpleNamespace(is_available=lambda: False)
backends = SimpleNamespace(mps=cuda)
"""


@pytest.fixture
def small(tmp_path: Path) -> dict[str, str]:
    """Return an environment that spares doctors the imports of torch and numba: most of their time.

    Not for processes that train.
    """
    (tmp_path / "small" / "torch").mkdir(parents=True)
    (tmp_path / "small" / "torch" / "__init__.py").write_text(SMALL_TORCH)
    path = os.pathsep.join([str(tmp_path / "small"), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "MOTLEY_COMPILED": "0"}


def doctor(module: str, *arguments: str, environment: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Return the exit status and the findings by name."""
    done = subprocess.run(
        [sys.executable, "-m", f"{module}.cli", "doctor", "--json", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout, done.stderr
    return done.returncode, {f["what"]: f for f in json.loads(done.stdout)["findings"]}


def test_doctors_find_what_is_well_and_what_is_not(tmp_path: Path, small: dict[str, str]) -> None:
    with federation(tmp_path, []) as found:
        found.serve("--metrics", "127.0.0.1:0")
        metrics = found.ports["metrics"]
        assert found.join("phone-1").returncode == 0
        state = ["--state", str(tmp_path / "phone-1")]
        server = ["--data", str(found.data)]

        status, findings = doctor("fedserver", *server, environment=small)
        assert status == 0, findings
        assert {f["verdict"] for f in findings.values()} == {"ok"}
        assert findings["server"]["found"] == "answers; 0 runs on record"
        assert "renewed by the server from" in findings["certificate"]["found"]
        for name, address in (
            ("client", found.address), ("join", found.join_address), ("metrics", metrics)
        ):  # fmt: skip
            assert findings[f"{name} port"]["found"] == f"{address} takes connections"

        status, findings = doctor("fedclient", *state, environment={})
        assert status == 0, findings
        assert {f["verdict"] for f in findings.values()} == {"ok"}
        assert f"{found.address} answers in" in findings["server"]["found"]
        assert "the server's" in findings["clock"]["found"]
        assert "torch" in findings

        status, findings = doctor(
            "fedserver", *server, "--listen", "127.0.0.1:1", environment=small
        )
        assert (status, findings["client port"]["verdict"]) == (1, "problem")
        found.terminate("server")
        (tmp_path / "phone-1/identity/client.pem").chmod(0o644)
        status, findings = doctor("fedclient", *state, environment=small)
        assert status == 1
        assert findings["key"]["commands"][0].startswith("chmod 600")
        assert "holds a private key and others can use it" in findings["identity"]["found"]
        (tmp_path / "phone-1/identity/client.pem").chmod(0o600)
        assert doctor("fedclient", *state, environment=small)[1]["server"]["verdict"] == "problem"
        status, findings = doctor("fedserver", *server, environment=small)
        assert status == 0
        assert findings["server"]["verdict"] == "warning"
        assert findings["client port"]["found"] == f"{found.address} is free"
        assert findings["metrics port"]["found"] == f"{metrics} is free"
        (start,) = findings["server"]["commands"]
        addresses = f"--listen {found.address} --join-listen {found.join_address}"
        assert start == f"fedserver serve --data {found.data} {addresses} --metrics {metrics}"


def test_a_server_in_plain_text_is_known_as_such(tmp_path: Path, small: dict[str, str]) -> None:
    with federation(tmp_path) as found:
        found.serve()
        status, findings = doctor("fedserver", "--data", str(found.data), environment=small)
        assert status == 0, findings
        assert findings["client port"]["found"] == f"{found.address} takes connections"
        assert not {"join port", "authority"} & findings.keys()
        found.terminate("server")
        status, findings = doctor("fedserver", "--data", str(found.data), environment=small)
        assert status == 0, findings
        start = f"fedserver serve --data {found.data} --insecure --listen {found.address}"
        assert findings["server"]["commands"] == [start]
        assert not {"join port", "authority"} & findings.keys()
