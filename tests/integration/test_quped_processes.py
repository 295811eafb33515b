"""QuPeD through real processes: personal models that persist, packed files that say the bits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import Federation, federation, until
from test_fault_processes import wait_for_round

from motley.wire import Codebook, PayloadReader

pytestmark = pytest.mark.processes

RUN = """
[run]
name = "quped"
algorithm = "quped"
rounds = {rounds}
seed = 3
on_lost_state = "{lost}"
[workload]
name = "digits"
[clients]
expected = 3
{clients}
[round]
deadline_seconds = 60
[settings]
local_steps = 5
batch_size = 10
learning_rate = 0.1
[wire]
up_bits = {bits}
down_bits = {bits}
[[tiers]]
name = "phone"
variant = "cnn1"
bits = 1
[[tiers]]
name = "jetson"
variant = "cnn1"
bits = 2
up_bits = 8
[[tiers]]
name = "pc"
variant = "cnn2"
"""
NAMES = ("phone", "jetson", "pc")


def run(rounds: int = 4, clients: str = "", lost: str = "restart", bits: int = 32) -> str:
    return RUN.format(rounds=rounds, clients=clients, lost=lost, bits=bits)


def client(bench: Federation, name: str) -> None:
    spec = f"digits?clients=3&client={NAMES.index(name)}&classes=4&train=40"
    bench.client(name, spec, "--tier", name)


def start(bench: Federation, names: tuple[str, ...] = NAMES) -> None:
    bench.serve()
    for name in names:
        client(bench, name)


def digests(record: dict[str, Any]) -> list[str]:
    return [e["state_after"] for e in record["history"] if e["status"] == "closed"]


def counted_on_disk(bench: Federation, name: str, run_id: str) -> list[str]:
    """Return the ids of the counted personal states that a client keeps."""
    folder = bench.root / name / "runs" / run_id
    return [p.stem.removeprefix("counted-") for p in folder.glob("counted-*")]


def last_counted(record: dict[str, Any], name: str) -> str:
    """Return the id of a client's newest counted task."""
    rounds = [
        entry
        for entry in record["history"]
        if entry["clients"].get(name, {}).get("status") == "counted"
    ]
    entry = rounds[-1]
    return f"{record['id']}-{entry['round']:05d}-{entry['attempt']}-train-{name}"


def test_kills_restarts_and_start_order_do_not_change_the_model(tmp_path: Path) -> None:
    found = []
    for disturbed in (False, True):
        folder = tmp_path / str(disturbed)
        folder.mkdir()
        with federation(folder) as bench:
            start(bench, NAMES[::-1] if disturbed else NAMES)
            run_id = bench.submit(run(rounds=5))
            if disturbed:
                wait_for_round(bench, run_id, 1)
                bench.kill("phone")
                bench.kill("server")
                bench.serve()
                client(bench, "phone")
            record = bench.finished(run_id)
            assert bench.command("replay", run_id).returncode == 0
            found.append((digests(record), accuracies(record)))
            check_packed_models(bench, record)
    assert found[0] == found[1]


def accuracies(record: dict[str, Any]) -> dict[str, float]:
    return {c["name"]: c["metrics"]["finish"]["accuracy"] for c in record["clients"]}


def check_packed_models(bench: Federation, record: dict[str, Any]) -> None:
    """Every quantized layer of a re-read file holds its 2^bits centres and nothing else."""
    for name, bits in (("phone", 1), ("jetson", 2), ("pc", 32)):
        path = bench.root / name / "models" / f"quped-{record['id']}.motley"
        finish = next(c for c in record["clients"] if c["name"] == name)["metrics"]["finish"]
        assert path.stat().st_size == finish["packed_bytes"]
        with PayloadReader(path) as reader:
            quantized = [n for n in reader.names if isinstance(reader[n].encoding, Codebook)]
            expected = [] if bits == 32 else ["conv2.weight", "fc1.weight", "fc2.weight"]
            assert quantized == expected
            for tensor in quantized:
                centres = reader[tensor].centres
                assert len(centres) == 2**bits
                assert set(np.unique(reader[tensor].decode())) <= set(centres.tolist())
        if bits != 32:
            assert finish["packed_bytes"] < finish["dense_bytes"] / 7


def test_surplus_clients_keep_their_last_counted_state(tmp_path: Path) -> None:
    with federation(tmp_path) as bench:
        start(bench)
        text = run(rounds=4, clients="count = 2\nover_select = 1.5", bits=8)
        record = bench.finished(bench.submit(text))
        statuses = [c["status"] for e in record["history"] for c in e["clients"].values()]
        assert statuses.count("surplus") == 4
        for name in NAMES:
            expected = [last_counted(record, name)] if name in counted_names(record) else []
            assert counted_on_disk(bench, name, record["id"]) == expected
        assert record["finish_done"] == 3


def counted_names(record: dict[str, Any]) -> set[str]:
    return {
        name
        for entry in record["history"]
        for name, c in entry["clients"].items()
        if c["status"] == "counted"
    }


@pytest.mark.parametrize("lost", ["restart", "exclude"])
def test_a_lost_personal_state_restarts_or_excludes_on_record(tmp_path: Path, lost: str) -> None:
    with federation(tmp_path) as bench:
        start(bench)
        run_id = bench.submit(run(rounds=5, lost=lost, clients="minimum = 2", bits=4))
        until(lambda: bench.show(run_id)["round"] >= 2, "two rounds close")
        bench.kill("phone")
        shutil.rmtree(bench.root / "phone" / "runs")
        shutil.rmtree(bench.root / "phone" / "outbox")
        client(bench, "phone")
        record = bench.finished(run_id)
        phone = next(c for c in record["clients"] if c["name"] == "phone")
        if lost == "restart":
            assert phone["restarts"] == 1
            assert phone["finished"]
        else:
            assert "lost_state" in phone["reason"]
            assert record["finish_done"] == 2
