"""Addresses that are typed wrong: one clear error each."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedclient.doctor import Patient, examine
from fedclient.errors import OptionError
from fedclient.options import check_server
from motley.checkup import machine
from motley.checkup.findings import Verdict, fine


@pytest.mark.parametrize("address", ["host", "host:", ":9400", "host:²", "host:0", "host:65536"])
def test_a_port_is_a_number_that_a_port_can_have(address: str) -> None:
    with pytest.raises(OptionError, match="expected HOST:PORT"):
        check_server(address)


def test_the_doctor_names_a_host_that_cannot_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for look in ("versions", "disk", "codec", "compiled_loops", "torch_build"):
        monkeypatch.setattr(machine, look, lambda *_: fine("this device", "is not looked at"))
    patient = Patient(state=tmp_path, server="server..example:9400", insecure=True)
    found = {finding.what: finding for finding in examine(patient)}["server"]
    assert found.verdict is Verdict.PROBLEM
    assert "server..example has no address" in found.found
