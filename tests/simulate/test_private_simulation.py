"""Private runs in a simulation: they repeat, they go on, and the server's own data tells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedserver.simulate.simulation import simulate
from motley.privacy.rdp import epsilon_of

RUN = """
[run]
name = "private"
algorithm = "{algorithm}"
rounds = 2
seed = {seed}
global_variant = "mlp"
[workload]
name = "digits"
[clients]
expected = 3
[settings]
local_steps = 2
batch_size = 10
privacy = "release"
epsilon = 20.0
delta = 1e-5
noise_multiplier = 3.0
{settings}
[evaluate]
every = 2
held_out = "digits?clients=3&classes=4"
[simulate]
data = "digits?clients={{clients}}&client={{client}}&classes=4&train=20"
"""


def states(algorithm: str, settings: str, folder: Path | None = None, seed: int = 3) -> list[str]:
    text = RUN.format(algorithm=algorithm, settings=settings, seed=seed)
    record = simulate(text, directory=folder).record
    assert record["status"] == "finished", record["reason"]
    assert "held_out_accuracy" in record["history"][-1]["metrics"]
    assert all(not entry["metrics"] for entry in record["history"] if entry["kind"] == "train")
    assert not any(client["metrics"].get("finish") for client in record["clients"])
    return [entry["state_after"] for entry in record["history"] if entry["kind"] == "train"]


def test_a_private_simulation_repeats_and_its_seed_counts(tmp_path: Path) -> None:
    uniform = 'weighting = "uniform"'
    first = states("fedavg", uniform, tmp_path / "a")
    assert states("fedavg", uniform) == first
    assert not set(states("fedavg", uniform, seed=4)) & set(first)


def test_dp_fedp3_runs_in_a_simulation() -> None:
    assert len(set(states("fedp3", 'layers = "lowerb"'))) == 2


@pytest.mark.processes
def test_the_command_prints_the_promise(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        RUN.format(algorithm="fedavg", settings='weighting = "uniform"', seed=3)
    )
    # Plainly, not forked: the command finds all that it imports by itself.
    command = [sys.executable, "-m", "fedserver.cli", "simulate", str(tmp_path / "run.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # The Renyi accountant's epsilon of two releases at noise multiplier 3; test_accountant.py.
    planned = epsilon_of(3.0, 1.0, 2, 1e-5)
    assert "privacy of tier all: epsilon 20 at delta 1e-05 for one client-release" in done.stdout
    assert f"noise multiplier 3 (epsilon {planned:.4g})" in done.stdout
