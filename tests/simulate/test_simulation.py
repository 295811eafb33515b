"""Simulations: resumed after kills, refused when they do not fit, over-selection, failures."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from federation import run_command, shared_forge

from fedserver.display import client_table, metrics_text
from fedserver.errors import PopulationError, SimulationError
from fedserver.simulate.population import Population, population_of
from fedserver.simulate.simulation import simulate
from fedserver.storage.payloads import PayloadStore
from motley.export.packed import read_tensors
from motley.models.units import variant_table
from motley.runfile import parse
from motley.wire import PayloadReader, file_sha256
from motley.workloads.digits import Digits

RUN = """
[run]
name = "sim"
algorithm = "{algorithm}"
rounds = {rounds}
seed = 3
[workload]
name = "digits"
[clients]
expected = {clients}
{rules}
[settings]
local_steps = 2
batch_size = 10
[evaluate]
every = {rounds}
{sections}
[simulate]
data = "digits?clients={{clients}}&client={{client}}&classes=4&train=20"
"""


def run(
    *,
    algorithm: str = "fedavg",
    rounds: int = 2,
    clients: int = 3,
    rules: str = "",
    sections: str = "",
) -> str:
    return RUN.format(
        algorithm=algorithm, rounds=rounds, clients=clients, rules=rules, sections=sections
    )


def models(record: Any) -> list[str]:
    return [e["state_after"] for e in record["history"] if e["status"] == "closed"]


def scores(record: Any) -> dict[str, float]:
    return {c["name"]: c["metrics"]["finish"]["accuracy"] for c in record["clients"]}


# --- killed and started again ----------------------------------------------------------------


def kill_after(arguments: list[str], lines: int) -> bool:
    """Run `fedserver` and kill it when it has said so many lines; False: it had ended before."""
    read, write = os.pipe()
    words = ["fedserver.cli", *arguments]
    with open(os.devnull, "wb") as nothing, os.fdopen(write, "wb") as errors:
        process = shared_forge().start(words, os.environ, Path.cwd(), nothing, errors)
    with os.fdopen(read) as said:
        for _ in range(lines):
            if not said.readline():
                return False
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


@pytest.mark.processes
def test_a_killed_simulation_goes_on_and_ends_in_the_same_model(tmp_path: Path) -> None:
    text = run(algorithm="quped", rounds=6, clients=4, rules="count = 3", sections=PHONES)
    (tmp_path / "run.toml").write_text(text)
    whole = simulate(text)
    place = ["--data", str(tmp_path / "data"), "--json"]
    arguments = ["simulate", str(tmp_path / "run.toml"), *place]
    assert kill_after(arguments, 2)
    assert kill_after(arguments, 2)
    done = run_command("fedserver", *arguments)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "finished"
    assert 0 < result["client_steps"] < whole.client_steps
    assert models(result["record"]) == models(whole.record)
    assert scores(result["record"]) == scores(whole.record)


PHONES = '[[tiers]]\nname = "phone"\nvariant = "cnn1"\nbits = 1\n'


class StopAt:
    """A watcher that ends a simulation as an exception at any of its steps does."""

    def __init__(self, answers: int) -> None:
        self._left = answers

    def answered(self, task: object) -> None:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt

    def closed(self, found: object) -> None:
        pass


@pytest.mark.parametrize("answers", [1, 3, 5, 7, 9, 11])
def test_one_that_is_interrupted_at_any_answer_goes_on(tmp_path: Path, answers: int) -> None:
    text = run(algorithm="local", rounds=2)
    with pytest.raises(KeyboardInterrupt):
        simulate(text, directory=tmp_path, watcher=StopAt(answers))
    result = simulate(text, directory=tmp_path)
    assert result.status == "finished"
    assert scores(result.record) == scores(simulate(text).record)
    assert sorted(p.name for p in (tmp_path / "simulation").glob("*/models/*.motley")) == [
        f"client-{number}.motley" for number in range(3)
    ]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = simulate(run(), directory=tmp_path)
    again = simulate(run(), directory=tmp_path)
    assert again.run_id == first.run_id
    assert again.client_steps == 0
    assert again.record == first.record
    assert first.client_steps == 2 * 3 * 2


def test_another_setting_does_not_go_on_with_a_run(tmp_path: Path) -> None:
    simulate(run(), directory=tmp_path)
    more = population_of(parse(run()), clients=4)
    with pytest.raises(SimulationError, match="begun with other clients"):
        simulate(run(), directory=tmp_path, population=more)


def test_a_run_that_is_not_over_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        simulate(run(), directory=tmp_path, watcher=StopAt(1))
    with pytest.raises(SimulationError, match="finish it"):
        simulate(run(rounds=3), directory=tmp_path)


def test_models_that_are_not_written_yet_are_not_left_to_another_run(tmp_path: Path) -> None:
    first = run(algorithm="local")
    with pytest.raises(KeyboardInterrupt):
        simulate(first, directory=tmp_path, watcher=StopAt(10))
    other = run(algorithm="local", rounds=3)
    with pytest.raises(SimulationError, match="which is finished but for models of clients"):
        simulate(other, directory=tmp_path)
    assert simulate(first, directory=tmp_path).status == "finished"
    assert simulate(other, directory=tmp_path).status == "finished"
    models = [path.name for path in (tmp_path / "simulation").glob("*/models/*.motley")]
    assert sorted(models) == sorted(2 * [f"client-{number}.motley" for number in range(3)])


# --- rounds ----------------------------------------------------------------------------------


def test_over_selection_counts_those_that_answer_first_in_a_drawn_order() -> None:
    text = run(clients=6, rounds=6, rules="count = 2\nover_select = 2")
    result = simulate(text)
    counted = counted_in(result.record)
    assert all(len(names) == 2 for names in counted)
    cohorts = [sorted(e["clients"]) for e in result.record["history"] if e["kind"] == "train"]
    assert any(list(names) != cohort[:2] for names, cohort in zip(counted, cohorts, strict=True))
    assert models(simulate(text).record) == models(result.record)
    assert result.client_steps == 6 * 2 * 2, "whoever is too late anyway is spared the work"


@pytest.mark.parametrize("batch", [1, 2])
def test_who_was_left_over_in_one_round_does_not_lead_the_next(tmp_path: Path, batch: int) -> None:
    text = run(clients=6, rounds=4, rules="count = 3\nover_select = 2")
    whole = simulate(text, batch=batch)
    counted = counted_in(whole.record)
    assert len(set(counted)) > 2, "the others of one round would else be all of the next one's"
    for answers in (2, 4, 7):
        folder = tmp_path / str(answers)
        with pytest.raises(KeyboardInterrupt):
            simulate(text, directory=folder, batch=batch, watcher=StopAt(answers))
        again = simulate(text, directory=folder, batch=batch)
        assert counted_in(again.record) == counted
        assert models(again.record) == models(whole.record)


def counted_in(record: Any) -> list[tuple[str, ...]]:
    """Return the clients that were counted in each training round."""
    return [
        tuple(name for name, c in e["clients"].items() if c["status"] == "counted")
        for e in record["history"]
        if e["kind"] == "train"
    ]


def test_a_round_has_no_deadline() -> None:
    text = run(sections="deadline_seconds = 1e-9\n[round]\ndeadline_seconds = 1e-9")
    result = simulate(text)
    assert result.status == "finished"
    assert all(e["status"] == "closed" for e in result.record["history"])


def test_a_client_without_data_leaves_the_run_with_its_reason() -> None:
    found = population_of(parse(run()))
    spoiled = found.clients[1].data.replace("client=1", "client=9")
    clients = (
        found.clients[0],
        type(found.clients[1])(name="client-1", tier="all", data=spoiled),
        found.clients[2],
    )
    result = simulate(run(), population=Population(clients=clients))
    assert result.status == "finished"
    reasons = {c["name"]: c["reason"] for c in result.record["clients"]}
    assert reasons["client-1"].startswith("data: ")
    assert reasons["client-0"] == reasons["client-2"] == ""


def test_a_run_that_loses_too_many_clients_pauses() -> None:
    result = simulate(run(rules="minimum = 3"), population=without_data())
    assert result.status == "paused"
    assert "data: " in result.reason


def without_data() -> Population:
    found = population_of(parse(run()), data="digits?clients=3&client=7")
    return Population(clients=found.clients)


# --- populations -----------------------------------------------------------------------------

TIERS = '[[tiers]]\nname = "phone"\n[[tiers]]\nname = "pc"\n'


def test_names_are_padded_and_templates_filled() -> None:
    found = population_of(parse(run()), clients=12, data="x?all={clients}&mine={client}&n={name}")
    assert [c.name for c in found.clients[:2]] == ["client-00", "client-01"]
    assert found.clients[11].data == "x?all=12&mine=11&n=client-11"


def test_tiers_hold_clients_in_order() -> None:
    runfile = parse(run(sections=TIERS))
    found = population_of(runfile, tiers={"phone": 1, "pc": 3})
    assert [c.tier for c in found.clients] == ["phone", "pc", "pc", "pc"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clients": 2}, "the run waits for 3"),
        ({"tiers": {"phone": 1, "pc": 1}}, "the run waits for 3"),
        ({"clients": 4, "tiers": {"phone": 1, "pc": 1}}, "hold 2 of 4"),
        ({"tiers": {"phones": 3}}, "no tier 'phones'"),
        ({"tiers": {"pc": 3}, "data": "x?who={number}"}, r"\{number\} is not known"),
        ({}, "hold 0 of 3"),
    ],
)
def test_populations_that_do_not_fit_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(PopulationError, match=message):
        population_of(parse(run(sections=TIERS)), **arguments)


def test_a_population_without_data_is_refused() -> None:
    text = run().replace("data =", "# data =")
    with pytest.raises(PopulationError, match="where the clients' data lies"):
        population_of(parse(text))


@pytest.mark.processes
def test_commands_read_the_directory_without_a_server(tmp_path: Path) -> None:
    result = simulate(run(), directory=tmp_path / "data")

    def ask(*arguments: str) -> str:
        done = run_command("fedserver", *arguments, "--data", str(tmp_path / "data"), "--json")
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert [entry["id"] for entry in json.loads(ask("runs"))] == [result.run_id]
    assert json.loads(ask("show", "sim")) == result.record
    assert ask("replay", "sim").count('"agrees": true') == 2
    ask("fetch", "sim", "-o", str(tmp_path / "model"))
    assert file_sha256(tmp_path / "model").hex() == result.record["state"]


def test_the_example_of_a_refusal_works() -> None:
    runfile = parse(run(sections=TIERS))
    with pytest.raises(PopulationError, match="--tiers") as refusal:
        population_of(runfile, clients=5)
    example = str(refusal.value).rpartition("--tiers ")[2]
    counts = {name: int(count) for name, _, count in (x.partition("=") for x in example.split(","))}
    assert len(population_of(runfile, clients=5, tiers=counts).clients) == 5


# --- who was never trained ---------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["fedp3", "quped"])
def test_scores_of_clients_that_never_trained_are_in_no_mean(algorithm: str) -> None:
    both = run(algorithm=algorithm, rounds=1, rules="count = 1").replace(
        "every = 1", 'every = 1\nsubject = "both"'
    )
    record = simulate(both).record
    train, evaluate = record["history"]
    (trained,) = (name for name, c in train["clients"].items() if c["status"] == "counted")
    told = {name: c["metrics"] for name, c in evaluate["clients"].items()}
    assert len(told) == 3
    for name, metrics in told.items():
        assert "global_accuracy" in metrics
        assert ("personal_accuracy" in metrics) == (name == trained)
        assert ("personal_untrained" in metrics) == (name != trained)
    means = evaluate["metrics"]
    assert means["personal_untrained"] == 2
    assert means["personal_accuracy"] == told[trained]["personal_accuracy"]
    everyone = [told[name]["global_accuracy"] for name in sorted(told)]
    assert means["global_accuracy"] == sum(everyone) / 3
    assert metrics_text(means).endswith("2 untrained")
    table = client_table({**record, "current": None})
    shown = dict(zip(table.columns[0].cells, table.columns[5].cells, strict=True))
    assert [shown[name] == "untrained" for name in sorted(told)] == [
        name != trained for name in sorted(told)
    ]


@pytest.mark.parametrize("start", ["global", "seed"])
def test_who_never_trained_ends_with_what_personal_models_begin_with(
    tmp_path: Path, start: str
) -> None:
    """One of three clients is in the only round; for the others the global model is the start."""
    text = run(algorithm="quped", rounds=1, rules="count = 1\nminimum = 1")
    text = text.replace("[settings]", f'[settings]\npersonal_start = "{start}"')
    record = simulate(text, directory=tmp_path).record
    (trained,) = next(e for e in record["history"] if e["kind"] == "train")["clients"]
    table = variant_table(Digits().variants()["cnn1"]).tensor_table
    with PayloadReader(PayloadStore(tmp_path).path(record["state"]), table) as reader:
        shared = {name: reader[name].decode() for name in reader.names}
    for path in (tmp_path / "simulation").glob("*/models/*.motley"):
        own = {name: t.decode() for name, t in read_tensors(path).items()}
        same = all((own[name] == values).all() for name, values in shared.items())
        assert same == (start == "global" and path.stem != trained), path.stem
