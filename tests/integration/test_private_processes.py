"""A private run through real processes: ledgers, a kill between spending and sending, budgets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from federation import Federation, federation, run_command, until

from fedclient.privacy import PrivacyFiles
from motley.privacy.ledger import spent

pytestmark = pytest.mark.processes

RUN = """
[run]
name = "private"
algorithm = "fedavg"
rounds = 2
seed = 11
[workload]
name = "slow"
[clients]
expected = 2
minimum = 1
[settings]
privacy = "ldp-sgd"
weighting = "uniform"
epsilon = {epsilon}
delta = 1e-5
sampling_rate = 0.2
local_steps = 4
batch_size = 8
noise_multiplier = {noise}
spare_tasks = {spare}
"""

PLAIN = """
[run]
name = "plain"
algorithm = "fedavg"
rounds = 1
[workload]
name = "slow"
[clients]
expected = 2
[settings]
local_steps = 2
"""

SLOW = Path(__file__).with_name("slow_digits.py")
"""A workload that the devices find as a module beside the file that it waits for."""


def start(bench: Federation, name: str, *options: str) -> None:
    index = int(name[-1])
    data = f"digits?clients=2&client={index}&classes=4&train=40"
    bench.client(name, data, "--workload", "slow=slow_digits:Slow", *options)


def ledger(bench: Federation, name: str) -> dict:
    done = run_command("fedclient", "privacy", "--json", "--state", str(bench.root / name))
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    return record


def test_a_private_run_end_to_end_with_a_kill_between_spending_and_sending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    shutil.copy(SLOW, tmp_path)
    wait = tmp_path / "wait"
    wait.touch()
    with federation(tmp_path) as bench:
        bench.serve("--workload", "slow=slow_digits:Slow")
        start(bench, "c0")
        start(bench, "c1", "--privacy-budget", "0.05,1e-6")
        run = bench.submit(RUN.format(epsilon=20, noise=1.0, spare=1))
        files = PrivacyFiles(tmp_path / "c0" / "privacy")
        # On record while its training waits at the first step: then the power goes.
        (before,) = until(files.entries, "c0 spends")
        bench.kill("c0")
        assert files.entries() == [before]
        wait.unlink()
        start(bench, "c0")
        record = bench.finished(run)
        assert record["privacy"]["all"]["noise_multiplier"] == 1.0
        # The task that was cut off was paid for again, with other noise.
        entries = files.entries()
        assert [entry.round for entry in entries] == [1, 1, 2]
        assert entries[0] == before
        assert len({entry.nonce for entry in entries}) == 3
        shown = ledger(bench, "c0")
        assert shown["runs"][0]["tasks"] == 3
        assert shown["runs"][0]["spent_epsilon"] == spent(entries, 1e-5, "record") < 20
        # The owner of c1 allows less than one task spends: it is out, with the reason on record.
        clients = {client["name"]: client for client in record["clients"]}
        assert clients["c1"]["reason"].startswith("privacy_budget: the privacy budget of this")
        assert ledger(bench, "c1")["tasks"] == 0
        assert clients["c1"]["finished"], "receiving the model spends nothing"
        # Nothing of the data was told but the noisy updates.
        for entry in record["history"]:
            mine = entry["clients"].get("c0", {})
            assert not mine.get("metrics")
            assert not mine.get("seconds")
        assert clients["c0"]["metrics"] == {}
        assert clients["c0"]["finished"]
        finished = next((tmp_path / "c0" / "models").glob("*.json"))
        assert "accuracy" in json.loads(finished.read_text())["metrics"], "the owner may know"
        # Nor does c1 take part in a run that promises nothing.
        plain = bench.submit(PLAIN)
        until(
            lambda: any(
                "trains without differential privacy" in client["reason"]
                for client in bench.show(plain)["clients"]
            ),
            "c1 refuses a run without privacy",
        )
