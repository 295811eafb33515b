"""What doctors make of versions, torch, disks, certificates and clocks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fedserver.identity.authority import DAY, Authority, Settings
from motley.checkup import machine, trust
from motley.checkup.findings import Verdict, as_json, exit_status, fine, problem, warning
from motley.identity.certificates import read_certificate


def answer(**facts: object) -> tuple[str, ...]:
    """A command that prints what the torch process would."""
    return (sys.executable, "-c", f"print({json.dumps(facts)!r})")


def test_a_report_fails_on_problems_alone():
    findings = [fine("a", "well"), warning("b", "hm", "do b")]
    assert exit_status(findings) == 0
    findings.append(problem("c", "bad", "do c"))
    assert exit_status(findings) == 1
    report = json.loads(as_json(findings))
    assert report["problems"] is True
    assert [f["verdict"] for f in report["findings"]] == ["ok", "warning", "problem"]
    assert report["findings"][2] == {
        "what": "c", "verdict": "problem", "found": "bad", "do": "do c"
    }  # fmt: skip


def test_a_missing_library_is_named():
    assert machine.versions(["numpy"]).verdict is Verdict.OK
    finding = machine.versions(["numpy", "no-such-thing"])
    assert finding.verdict is Verdict.PROBLEM
    assert finding.do == "pip install no-such-thing"


def test_torch_is_asked_whether_it_sees_the_device():
    seen = answer(version="2.5.0", threads=4, accelerators="cuda")
    assert machine.torch_build("cuda:0", seen).found == "2.5.0, 4 threads, accelerators: cuda"
    blind = machine.torch_build("cuda:0", answer(version="2.5.0", threads=4, accelerators="none"))
    assert blind.verdict is Verdict.PROBLEM
    assert "--device cuda:0" in blind.do
    missing = machine.torch_build("cpu", (sys.executable, "-c", "import no_torch_here"))
    assert missing.verdict is Verdict.PROBLEM
    assert missing.found == "ModuleNotFoundError: No module named 'no_torch_here'"


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "not" / "there" / "yet"
    assert str(tmp_path) in machine.disk("disk", folder).found
    for free, verdict in ((63 << 20, Verdict.PROBLEM), (1 << 29, Verdict.WARNING),
                          (2 << 30, Verdict.OK)):  # fmt: skip
        monkeypatch.setattr(
            machine.shutil, "disk_usage", lambda _, free=free: type("U", (), {"free": free})
        )
        assert machine.disk("disk", folder).verdict is verdict
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    assert machine.disk("disk", folder).found.endswith("cannot be written")


def test_the_codec_is_timed_and_checked(monkeypatch: pytest.MonkeyPatch):
    assert machine.codec().verdict in (Verdict.OK, Verdict.WARNING)
    monkeypatch.setattr(machine, "unpack", lambda packed, bits, n: packed)
    assert machine.codec().verdict is Verdict.PROBLEM


def test_certificates_are_judged_by_the_clock(tmp_path: Path):
    """90 days: renewed when 30 are left; a warning when the daemon has missed half of those."""
    Authority.create(tmp_path, Settings(host="127.0.0.1"))
    path = tmp_path / "identity" / "server.pem"
    found = read_certificate(path.read_bytes())

    def judge(now: float) -> Verdict:
        return trust.certificate("c", path, now, mend="mend", renews="by somebody").verdict

    assert judge(found.not_before - 1) is Verdict.PROBLEM
    assert judge(found.not_before) is Verdict.OK
    assert judge(found.not_after - 29 * DAY) is Verdict.OK
    assert judge(found.not_after - 14 * DAY) is Verdict.WARNING
    assert judge(found.not_after) is Verdict.PROBLEM
    nobody = trust.certificate("c", tmp_path / "none", 0, mend="mend", renews="")
    assert (nobody.verdict, nobody.do) == (Verdict.PROBLEM, "mend")

    dates = {"the server's": found}
    assert trust.clock(dates, found.not_before - 60).do.startswith("set the clock")
    assert trust.clock(dates, found.not_before + 60).verdict is Verdict.OK
    assert trust.clock(dates, found.not_after).verdict is Verdict.PROBLEM
    assert trust.clock({}, 0).verdict is Verdict.WARNING


def test_a_key_that_others_can_read_is_a_problem(tmp_path: Path):
    path = tmp_path / "key"
    path.write_text("")
    path.chmod(0o600)
    assert trust.permissions("key", path).verdict is Verdict.OK
    path.chmod(0o640)
    finding = trust.permissions("key", path)
    assert finding.verdict is Verdict.PROBLEM
    assert finding.do.startswith(f"chmod 600 {path}")
    assert trust.permissions("key", tmp_path / "none").verdict is Verdict.PROBLEM
