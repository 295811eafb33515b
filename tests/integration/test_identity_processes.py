"""Certificates among real processes: joining, a run over mutual TLS, shutting out, renewing."""

from __future__ import annotations

import json
import stat
import subprocess
import time
from pathlib import Path

import pytest
from federation import PATIENCE, Federation, federation, run_command, until
from test_fedavg_processes import data, run

from fedclient.identity.store import IdentityStore
from motley.identity.certificates import Certificate

pytestmark = pytest.mark.processes


def wait_for_round(bench: Federation, run_id: str, number: int) -> None:
    until(lambda: bench.show(run_id)["round"] >= number, f"{number} rounds close")


def test_a_run_over_mutual_tls_ends_as_in_plain_text_and_a_client_is_shut_out(
    tmp_path: Path,
) -> None:
    digests = []
    for name, certificates in (("plain", None), ("tls", [])):
        folder = tmp_path / name
        folder.mkdir()
        with federation(folder, certificates) as bench:
            bench.serve()
            for index in range(2):
                bench.client(f"c{index}", data(index))
            digests.append(bench.finished(bench.submit(run(rounds=3)))["state"])
            if certificates is not None:
                shut_out_in_mid_run(bench)
    assert digests[0] == digests[1]


def shut_out_in_mid_run(bench: Federation) -> None:
    text = run(name="second", rounds=5000).replace("expected = 2", "expected = 2\nminimum = 2")
    run_id = bench.submit(text + "[round]\ndeadline_seconds = 600\n")
    wait_for_round(bench, run_id, 1)
    usable = json.loads(bench.command("tokens", "list", "--json").stdout)
    said = bench.command("clients", "revoke", "c1", "--reason", "lost on the train").stdout
    first, *rest = said.splitlines()
    assert first == "client c1 is shut out: lost on the train"
    open_tokens = [t["id"] for t in usable if t["state"] == "usable" and not t["client"]]
    assert open_tokens
    assert rest[1:] == [f"  fedserver tokens revoke {token}" for token in open_tokens]
    assert bench.processes.pop("c1").wait(PATIENCE) == 3
    assert "lost on the train" in bench.log("c1").splitlines()[-1]
    # The run needs two and has lost one for good: it pauses at once, with the reason.
    until(lambda: bench.show(run_id)["status"] == "paused", "the run pauses")
    assert "revoked: lost on the train" in bench.show(run_id)["reason"]
    listed = {c["name"]: c for c in json.loads(bench.command("clients", "--json").stdout)}
    assert listed["c1"]["revoked"] == "lost on the train"
    assert listed["c0"]["revoked"] == ""
    assert listed["c0"]["certificate_expires"] > 0
    # A device that joins in its name takes its place, and the run goes on.
    done = bench.join("c1")
    assert done.returncode == 3
    assert "tokens create --client c1" in done.stderr
    done = bench.join("c1", "--client", "c1")
    assert done.returncode == 0, done.stderr
    bench.client("c1", data(1))
    bench.command("resume", run_id)
    wait_for_round(bench, run_id, bench.show(run_id)["round"] + 2)
    bench.command("stop", run_id)


def certificate_of(bench: Federation, name: str) -> Certificate:
    return IdentityStore(bench.root / name).load(name).certificate


def test_short_lived_certificates_are_renewed_in_mid_run(tmp_path: Path) -> None:
    lifetimes = ["--client-lifetime", "12s", "--server-lifetime", "12s"]
    with federation(tmp_path, lifetimes) as bench:
        bench.serve()
        for index in range(2):
            bench.client(f"c{index}", data(index))
        run_id = bench.submit(run(rounds=1))
        firsts = [certificate_of(bench, f"c{index}") for index in range(2)]

        def both_first_ones_ran_out() -> bool:
            record = bench.show(run_id)
            if record["status"] == "finished" and not record["finish_waiting"]:
                bench.command("extend", run_id, "--rounds", "5")
            for index in range(2):
                assert bench.processes[f"c{index}"].poll() is None, bench.log(f"c{index}")
            return time.time() > max(found.not_after for found in firsts)

        until(both_first_ones_ran_out, "both clients outlive their first certificates")
        assert all(bench.events(f"c{index}", "certificate_renewed") for index in range(2))
        signed = "server_certificate_signed"
        until(lambda: len(bench.events("server", signed)) >= 2, "the server's is renewed too")
        before = bench.finished(run_id)["round"]
        bench.command("extend", run_id, "--rounds", "1")
        record = bench.finished(run_id)
        assert record["round"] == before + 1
        assert all(entry["status"] == "closed" for entry in record["history"])
        assert not bench.events("server", "refused")


def test_keys_are_for_their_owner_alone_and_a_client_with_none_says_what_to_do(
    tmp_path: Path,
) -> None:
    with federation(tmp_path, []) as bench:
        bench.serve()
        assert bench.join("c0").returncode == 0
        for path in (bench.data / "identity", tmp_path / "c0" / "identity"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
            for file in path.iterdir():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        start = ["fedclient", "start", "--data", data(0)]
        stranger = run_command(*start, "--name", "c9", "--state", str(tmp_path / "c9"))
        assert stranger.returncode == 2
        assert "fedclient join" in stranger.stderr
        (tmp_path / "c0" / "identity" / "client.pem").chmod(0o644)
        careless = run_command(*start, "--name", "c0", "--state", str(tmp_path / "c0"))
        assert careless.returncode == 4
        assert "chmod 600" in careless.stderr


def test_an_operator_steers_from_elsewhere_until_struck_off(tmp_path: Path) -> None:
    with federation(tmp_path, []) as bench:
        bench.serve("--control-listen", "127.0.0.1:0")
        bundle = tmp_path / "alice.json"
        bench.command("operators", "create", "alice", "-o", str(bundle))
        assert stat.S_IMODE(bundle.stat().st_mode) == 0o600

        def steer(*words: str) -> subprocess.CompletedProcess[str]:
            where = ["--operator", str(bundle), "--server", bench.control_address]
            return run_command("fedserver", *words, *where)

        done = steer("tokens", "create", "--json")
        assert json.loads(done.stdout)["uses_left"] == 10, done.stderr
        assert json.loads(steer("runs", "--json").stdout) == []
        bench.command("operators", "revoke", "alice")
        done = steer("runs")
        assert done.returncode == 1
        assert "revoked" in done.stderr
