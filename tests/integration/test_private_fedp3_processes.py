"""DP-FedP3 through real processes: noise on each client's own layers, a kill, ledgers, a record."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from federation import Federation, federation, until
from test_private_processes import ledger

from fedclient.privacy import PrivacyFiles
from motley.models.units import variant_table
from motley.privacy.ledger import spent
from motley.wire import PayloadReader
from motley.workloads.digits import Digits

pytestmark = pytest.mark.processes

RUN = """
[run]
name = "dp-fedp3"
algorithm = "fedp3"
rounds = 2
seed = 11
global_variant = "cnn1"
[workload]
name = "slow"
[clients]
expected = 5
minimum = 1
[settings]
layers = "opu2"
keep = 0.9
local_pruning = "uniform"
local_steps = 3
batch_size = 8
learning_rate = 0.1
epsilon = 8.0
delta = 1e-5
clip = 0.5
spare_tasks = 1
"""
MODES = {
    "ldp-sgd": 'privacy = "ldp-sgd"\nsampling_rate = 0.2\n',
    "release": 'privacy = "release"\n',
}
UNITS = {"ldp-sgd": "record", "release": "client-release"}
CLIENTS = ("c0", "c1", "c2", "c3", "c4")
LAYERS = {
    "c0": {"conv1", "conv2", "fc3"},
    "c2": {"conv2", "fc1", "fc3"},
    "c3": {"fc1", "fc2", "fc3"},
    "c4": {"conv1", "fc2", "fc3"},
}
"""What each may send, of four groups; c1, of the first group too, has no budget for any of it."""
SLOW = Path(__file__).with_name("slow_digits.py")
"""A workload that the devices find as a module beside the file that it waits for."""


def start(bench: Federation, name: str) -> None:
    data = f"digits?clients=5&client={name[-1]}&train=40"
    budget = ["--privacy-budget", "0.05,1e-6"] if name == "c1" else []
    bench.client(name, data, "--workload", "slow=slow_digits:Slow", *budget)


def values(path: Path, *, packed: bool = False) -> dict[str, np.ndarray]:
    """Decode a payload with the model's table, or a finished model, which names its tensors."""
    table = None if packed else variant_table(Digits().variants()["cnn1"]).tensor_table
    with PayloadReader(path, table) as reader:
        return {name: reader[name].decode() for name in reader.names}


def stored(bench: Federation, digest: str) -> Path:
    return bench.data / "payloads" / digest[:2] / digest


@pytest.mark.parametrize("mode", MODES)
def test_four_groups_a_kill_and_a_client_without_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    pytest.importorskip("dp_accounting")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    shutil.copy(SLOW, tmp_path)
    wait = tmp_path / "wait"
    wait.touch()
    with federation(tmp_path) as bench:
        bench.serve("--workload", "slow=slow_digits:Slow")
        for name in CLIENTS:
            start(bench, name)
        run = bench.submit(RUN + MODES[mode])
        files = PrivacyFiles(tmp_path / "c2" / "privacy")
        # On record while its training waits at the first step: then the power goes.
        (before,) = until(files.entries, "c2 spends")
        bench.kill("c2")
        wait.unlink()
        start(bench, "c2")
        record = bench.finished(run)
        replayed = bench.command("replay", run, "--json").stdout
        assert replayed.count('"agrees": true') == 2
        check_statement(record["privacy"]["all"], mode)
        z = record["privacy"]["all"]["noise_multiplier"]
        for entry in record["history"]:
            check_updates(bench, entry, mode, z)
        assert files.entries()[0] == before
        check_ledgers(bench, files, mode)
        check_clients(bench, record)


def check_statement(stated: Mapping[str, object], mode: str) -> None:
    """What is promised; and the theorem's σ, σ² = 8 K C² ln(1/δ) / (m² ε²), beside the used one."""
    steps, batch, records = (9, 8, 8 / 0.2) if mode == "ldp-sgd" else (3, 1, 1)
    z = float(stated["noise_multiplier"])  # type: ignore[arg-type]
    expected = {
        "mode": mode,
        "epsilon": 8.0,
        "delta": 1e-5,
        "unit": UNITS[mode],
        "neighbouring": "add-or-remove-one",
        "steps": steps,
        "sigma": pytest.approx(z * 0.5 / batch),
        "theorem_sigma": pytest.approx(
            math.sqrt(8 * steps * math.log(1e5)) * 0.5 / (records * 8.0)
        ),
    }
    assert {name: stated[name] for name in expected} == expected
    assert 0.98 * 8 < float(stated["planned_epsilon"]) <= 8  # type: ignore[arg-type]


def check_updates(
    bench: Federation, entry: Mapping[str, object], mode: str, noise_multiplier: float
) -> None:
    """Each sent its own layers alone, and noise of the promised size is on every value of them."""
    received = values(stored(bench, entry["state_before"]))  # type: ignore[arg-type]
    # Clipped signals are small beside the noise of so many values.
    deviation = noise_multiplier * 0.5
    if mode == "ldp-sgd":
        deviation *= 0.1 / 8 * math.sqrt(3)
    table = variant_table(Digits().variants()["cnn1"])
    clients: Mapping[str, Mapping[str, str]] = entry["clients"]  # type: ignore[assignment]
    counted = {name for name, client in clients.items() if client["status"] == "counted"}
    assert counted == set(LAYERS)
    for name in counted:
        sent = values(stored(bench, clients[name]["update"]))
        assert {table[tensor].unit for tensor in sent} == LAYERS[name]
        moved = np.concatenate([(sent[t] - received[t]).ravel() for t in sent])
        assert np.count_nonzero(moved) > 0.999 * moved.size
        assert float(moved.std()) == pytest.approx(deviation, rel=0.05)


def check_ledgers(bench: Federation, restarted: PrivacyFiles, mode: str) -> None:
    """The task that was cut off was paid for twice, with other noise; the others paid once."""
    entries = restarted.entries()
    assert [entry.round for entry in entries] == [1, 1, 2]
    assert len({entry.nonce for entry in entries}) == 3
    (shown,) = ledger(bench, "c2")["runs"]
    assert (shown["tasks"], shown["mode"], shown["unit"]) == (3, mode, UNITS[mode])
    assert shown["spent_epsilon"] == spent(entries, 1e-5, UNITS[mode])  # type: ignore[arg-type]
    assert 0.98 * 8 < shown["spent_epsilon"] <= 8, "spare_tasks planned for three tasks"
    (undisturbed,) = ledger(bench, "c0")["runs"]
    assert undisturbed["tasks"] == 2
    assert undisturbed["spent_epsilon"] < shown["spent_epsilon"]
    assert ledger(bench, "c1")["tasks"] == 0


def check_clients(bench: Federation, record: Mapping[str, object]) -> None:
    """Nothing but noisy updates was told, and who has no budget ends with the server's model."""
    clients: list[dict[str, object]] = record["clients"]  # type: ignore[assignment]
    for client in clients:
        assert client["finished"]
        assert client["metrics"] == {}
    assert str(clients[1]["reason"]).startswith("privacy_budget: the privacy budget of this")
    state = values(stored(bench, str(record["state"])))
    (model,) = (bench.root / "c1" / "models").glob("*.motley")
    kept = values(model, packed=True)
    assert kept.keys() == state.keys()
    for name in state:
        np.testing.assert_array_equal(kept[name], state[name])
