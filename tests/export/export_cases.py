"""Models that were trained for a few steps, as a simulation leaves them on disk."""

from __future__ import annotations

from pathlib import Path

from fedserver.simulate.population import population_of
from fedserver.simulate.simulation import simulate
from motley.export.about import About
from motley.export.packed import PackedModel, read_tensors
from motley.runfile import parse
from motley.workload import DataSpec, LocalData
from motley.workloads.digits import Digits

DATA = "digits?clients=4&client={client}&classes=10"
QUPED = f"""
[run]
name = "taken"
algorithm = "quped"
rounds = 6
seed = 5
[workload]
name = "digits"
[clients]
expected = 4
[settings]
local_steps = 60
batch_size = 25
learning_rate = 0.3
iterations_per_epoch = 15
[[tiers]]
name = "b1"
variant = "cnn1"
bits = 1
[[tiers]]
name = "b2"
variant = "cnn1"
bits = 2
[[tiers]]
name = "b4"
variant = "mlp"
bits = 4
[[tiers]]
name = "full"
variant = "cnn1"
[simulate]
data = "{DATA}"
tiers = {{ b1 = 1, b2 = 1, b4 = 1, full = 1 }}
"""
FEDMPQ = f"""
[run]
name = "planes"
algorithm = "fedmpq"
rounds = 2
seed = 5
global_variant = "cnn1"
[workload]
name = "digits"
[clients]
expected = 2
[settings]
local_steps = 20
batch_size = 25
learning_rate = 0.05
[[tiers]]
name = "b2"
bits = 2
[[tiers]]
name = "b8"
bits = 8
[simulate]
data = "{DATA.replace("clients=4", "clients=2")}"
tiers = {{ b2 = 1, b8 = 1 }}
"""
VARIANTS = {"b1": "cnn1", "b2": "cnn1", "b4": "mlp", "full": "cnn1"}


def data_of(number: int, clients: int = 4) -> LocalData:
    """Return what client `number` of a run trained on."""
    spec = DATA.replace("clients=4", f"clients={clients}").format(client=number)
    return Digits().load(DataSpec.parse(spec))


def train(text: str, folder: Path) -> dict[str, Path]:
    """Run a run file; return each tier's finished model, in order of its clients' names."""
    runfile = parse(text, "run.toml")
    population = population_of(runfile)
    result = simulate(text, population=population, directory=folder, source="run.toml")
    assert result.status == "finished", result.reason
    models = folder / "simulation" / result.run_id / "models"
    return {client.tier: _only(models, client.name) for client in population.clients}


def _only(folder: Path, client: str) -> Path:
    (found,) = folder.glob(f"{client}*")
    return found


def about(variant: str, algorithm: str = "quped") -> About:
    """Return a description of a model of these runs."""
    return About(
        workload="digits",
        variant=variant,
        run="r1",
        name="taken",
        algorithm=algorithm,
        rounds=3,
        client="phone-1",
    )


def packed(path: Path, variant: str, algorithm: str = "quped") -> PackedModel:
    """Return a finished model with its description."""
    return PackedModel.of(about(variant, algorithm), read_tensors(path))
