"""What doctors make of versions, torch, disks, certificates and clocks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedserver.identity.authority import DAY, Authority, Settings
from motley.checkup import machine, trust
from motley.checkup.findings import (
    Finding,
    Verdict,
    as_json,
    exit_status,
    fine,
    problem,
    report,
    warning,
)
from motley.identity.certificates import read_certificate


def answer(**facts: object) -> tuple[str, ...]:
    """A command that prints what the torch process would."""
    return (sys.executable, "-c", f"print({json.dumps(facts)!r})")


def test_a_report_fails_on_problems_alone():
    findings = [fine("a", "well"), warning("b", "hm", "do b")]
    assert exit_status(findings) == 0
    findings.append(problem("c", "bad", "do c", "c now"))
    assert exit_status(findings) == 1
    report = json.loads(as_json(findings))
    assert report["problems"] is True
    assert [f["verdict"] for f in report["findings"]] == ["ok", "warning", "problem"]
    assert report["findings"][2] == {
        "what": "c", "verdict": "problem", "found": "bad", "do": "do c", "commands": ["c now"]
    }  # fmt: skip


def test_each_finding_is_printed_as_it_comes(capsys: pytest.CaptureFixture[str]):
    printed: list[str] = []

    def findings() -> Iterator[Finding]:
        yield fine("first", "well")
        printed.append(capsys.readouterr().out)
        yield warning("second", "hm", "do it")
        printed.append(capsys.readouterr().out)

    assert report(findings(), json_output=False) == 0
    assert [line.split() for line in printed[0].splitlines()] == [["ok", "first", "well"]]
    assert [line.split() for line in printed[1].splitlines()] == [
        ["warning", "second", "hm"],
        ["do", "it"],
    ]


def test_json_is_one_document_at_the_end(capsys: pytest.CaptureFixture[str]):
    def findings() -> Iterator[Finding]:
        yield fine("first", "well")
        assert capsys.readouterr() == ("", "")
        yield problem("second", "bad", "do it", "now")

    assert report(findings(), json_output=True) == 1
    out, err = capsys.readouterr()
    assert [finding["what"] for finding in json.loads(out)["findings"]] == ["first", "second"]
    assert err == ""


def test_commands_and_paths_can_be_copied_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    path = "/srv/" + "a-long-name/" * 9
    command = f"fedserver init --data '{path}with a blank' --address [2001:db8::1]:9400"
    words = "some more words that say what is to be done about it, too many for a single line"
    report([problem("authority", f"nothing in {path}", words, command)], json_output=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines[-1:]] == [command]
    assert sum(path in line for line in lines) == 2
    assert " ".join(" ".join(lines[:-1]).split()) == f"problem authority nothing in {path} {words}:"
    assert all(len(line) <= 80 for line in lines if path not in line)


def test_a_missing_library_is_named():
    assert machine.versions(["numpy"]).verdict is Verdict.OK
    finding = machine.versions(["numpy", "no-such-thing"])
    assert finding.verdict is Verdict.PROBLEM
    assert finding.commands == ("pip install no-such-thing",)


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


def test_the_compiled_loops_are_looked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MOTLEY_COMPILED", raising=False)
    monkeypatch.setattr(machine, "find_spec", lambda name: object())
    used = machine.compiled_loops((sys.executable, "-c", "print('0.61.2')"))
    assert (used.verdict, used.found.split("; ")[1]) == (Verdict.OK, "numba 0.61.2")
    broken = machine.compiled_loops((sys.executable, "-c", "raise ImportError('needs numpy 2.4')"))
    assert broken.verdict is Verdict.WARNING
    assert broken.found == "not used: ImportError: needs numpy 2.4"
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    absent = machine.compiled_loops()
    assert (absent.verdict, "not installed" in absent.found) == (Verdict.OK, True)
    monkeypatch.setenv("MOTLEY_COMPILED", "0")
    assert machine.compiled_loops().found == "not used: MOTLEY_COMPILED=0 keeps numba out"


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
    none = tmp_path / "none"
    nobody = trust.certificate("c", none, 0, mend="mend", renews="", commands=["run it"])
    assert (nobody.verdict, nobody.do, nobody.commands) == (Verdict.PROBLEM, "mend", ("run it",))

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
    assert finding.commands == (f"chmod 600 {path}",)
    assert trust.permissions("key", tmp_path / "none").verdict is Verdict.PROBLEM
