"""What users meet: clients that die, servers that restart, names that are not mapped."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from federation import Federation, federation, until
from test_fedavg_processes import data, run

pytestmark = pytest.mark.processes


def closed_rounds(bench: Federation, run_id: str) -> int:
    return int(bench.show(run_id)["round"])


def wait_for_round(bench: Federation, run_id: str, number: int) -> None:
    until(lambda: closed_rounds(bench, run_id) >= number, f"{number} rounds close")


def test_a_killed_client_comes_back_and_the_run_ends_the_same(tmp_path: Path) -> None:
    digests = []
    for disturbed in (False, True):
        folder = tmp_path / str(disturbed)
        folder.mkdir()
        with federation(folder) as bench:
            bench.serve()
            for index in range(2):
                bench.client(f"c{index}", data(index))
            run_id = bench.submit(run(rounds=6))
            if disturbed:
                wait_for_round(bench, run_id, 2)
                bench.kill("c0")
                bench.client("c0", data(0))
            digests.append(bench.finished(run_id)["state"])
    assert digests[0] == digests[1]


def test_a_killed_server_goes_on_where_it_was(tmp_path: Path) -> None:
    with federation(tmp_path, forked=False) as bench:
        bench.serve()
        for index in range(2):
            bench.client(f"c{index}", data(index))
        run_id = bench.submit(run(rounds=6))
        until(lambda: closed_rounds(bench, run_id) >= 2, "two rounds close")
        bench.kill("server")
        bench.serve()
        record = bench.finished(run_id)
        assert record["round"] == 6
        assert bench.command("replay", run_id).returncode == 0


def test_a_vanished_client_does_not_hold_a_round_for_ever(tmp_path: Path) -> None:
    text = run(rounds=2).replace("expected = 2", "expected = 2\nminimum = 1")
    with federation(tmp_path) as bench:
        bench.serve()
        for index in range(2):
            bench.client(f"c{index}", data(index))
        until(lambda: len(bench.events("server", "client_enrolled")) == 2, "both enrol")
        run_id = bench.submit(text + "[round]\ndeadline_seconds = 4\n")
        until(lambda: bench.show(run_id)["clients"], "the clients are frozen")
        bench.kill("c1")
        until(lambda: closed_rounds(bench, run_id) == 2, "the rounds close at their deadline")
        record = bench.show(run_id)
        assert record["status"] == "finished", "an absent client never keeps a run open"
        assert record["history"][-1]["clients"]["c0"]["status"] == "counted"
        bench.client("c1", data(1))
        assert bench.finished(run_id)["finish_done"] == 2, "and gets its finish task later"


def test_an_unmapped_workload_names_the_option_on_both_sides(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from motley.workloads.digits import Digits\nclass Mine(Digits):\n    pass\n"
    )
    with federation(tmp_path) as bench:
        bench.serve("--workload", "mine=mine:Mine")
        bench.client("c0", data(0))
        bench.client("c1", data(1), "--workload", "mine=mine:Mine")
        text = run(rounds=1).replace('[workload]\nname = "digits"', '[workload]\nname = "mine"')
        run_id = bench.submit(text)
        option = "--workload mine=module:object"
        until(lambda: option in bench.show(run_id)["reason"], "the operator is told")
        until(lambda: option in bench.log("c0"), "the owner is told")
        assert bench.terminate("c0") == 0
        bench.client("c0", data(0), "--workload", "mine=mine:Mine")
        assert bench.finished(run_id)["status"] == "finished"


def test_a_second_client_of_a_name_is_refused(tmp_path: Path) -> None:
    with federation(tmp_path) as bench:
        bench.serve()
        bench.client("c0", data(0))
        until(lambda: bench.events("server", "client_enrolled"), "the first enrols")
        first = bench.processes.pop("c0")
        bench.processes["first"] = first
        other = tmp_path / "elsewhere"
        bench._start(
            "second",
            [
                *("fedclient.cli", "start", "--server", bench.address, "--name", "c0"),
                *("--state", str(other), "--data", data(0), "--insecure"),
            ],
        )
        assert bench.processes["second"].wait(60) == 3
        assert "another --name" in bench.log("second")
        assert first.poll() is None


def test_a_port_in_use_and_a_data_directory_in_use_are_clear(tmp_path: Path) -> None:
    with federation(tmp_path) as bench, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = bench.command("serve", "--listen", address, "--insecure", check=False)
        assert done.returncode == 1
        assert f"cannot listen on {address}: the port is in use" in done.stderr
        bench.serve()
        done = bench.command("serve", "--listen", "127.0.0.1:0", "--insecure", check=False)
        assert "in use by another fedserver" in done.stderr
        assert bench.terminate("server") == 0


def test_json_output_is_json(tmp_path: Path) -> None:
    with federation(tmp_path) as bench:
        bench.serve()
        for index in range(2):
            bench.client(f"c{index}", data(index))
        run_id = bench.submit(run(rounds=1))
        bench.finished(run_id)
        watched = bench.command("watch", run_id, "--json").stdout.splitlines()
        assert json.loads(watched[-1])["status"] == "finished"
        assert json.loads(bench.command("runs", "--json").stdout)[0]["id"] == run_id
        names = [c["name"] for c in json.loads(bench.command("clients", "--json").stdout)]
        assert names == ["c0", "c1"]
        extended = bench.command("extend", run_id, "--rounds", "1", "--json").stdout
        assert json.loads(extended)["status"] == "queued"
        assert bench.finished(run_id)["round"] == 2
