"""The examples that can be simulated: their populations fit, and README names them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedserver.simulate.population import population_of
from fedserver.simulate.simulation import simulate
from motley.runfile import parse

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {
    path.stem: path
    for path in sorted((ROOT / "examples").glob("*.toml"))
    if parse(path.read_text()).simulate.data
}


def test_the_readme_names_the_examples_that_can_be_simulated() -> None:
    text = (ROOT / "README.md").read_text()
    (named,) = re.findall(r"those of `examples` with a `\[simulate\]` section: ([^)]*)\)", text)
    assert set(re.findall(r"`([\w-]+)`", named)) == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_says_who_takes_part(name: str) -> None:
    runfile = parse(EXAMPLES[name].read_text())
    population = population_of(runfile)
    assert len(population.clients) == runfile.clients.expected
    assert {client.tier for client in population.clients} == {tier.name for tier in runfile.tiers}


@pytest.mark.parametrize("name", ["digits-alone", "digits-quped"])
def test_the_devices_of_the_demo_can_be_simulated(name: str) -> None:
    """A shorter run; each device's tier is the one of its name."""
    text = EXAMPLES[name].read_text()
    text = re.sub(r"^rounds = \d+$", "rounds = 1", text, flags=re.M)
    result = simulate(re.sub(r"^local_steps = \d+$", "local_steps = 2", text, flags=re.M))
    assert result.status == "finished", result.reason
    found = {client["name"]: client["tier"] for client in result.record["clients"]}
    assert found.pop("phone-2") == "slow-phone"
    assert all(client.startswith(f"{tier}-") for client, tier in found.items())
    assert all("accuracy" in client["metrics"]["finish"] for client in result.record["clients"])
