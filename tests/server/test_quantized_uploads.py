"""FedPAQ and UVeQFed through the engine: what goes up, what the server makes of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from bench import Bench, Tensors, runfile

from fedserver.rounds.tasks import Arrived, Receipt, Ticket
from fedserver.rounds.updates import check_update
from fedserver.simulate.population import population_of
from fedserver.simulate.simulation import simulate
from motley.errors import RunFileError, UpdateError
from motley.execution.executor import Executor
from motley.runfile import parse
from motley.seeding import dither_seed
from motley.task import TaskSpec
from motley.wire import (
    DitheredLattice,
    EncodedTensor,
    PayloadReader,
    UniformOffset,
    quantize_lattice,
    write_payload,
)
from motley.workload import DataSpec
from motley.workloads.digits import Digits

CLIENTS = ("a", "b")


class NoPersonalState:
    def load(self, version: str) -> None:
        raise AssertionError(version)

    def save(self, version: str, tensors: object) -> None:
        raise AssertionError(version)


def started(tmp_path: Path, algorithm: str, settings: str = "", bits: int = 4) -> Bench:
    bench = Bench(tmp_path)
    bench.arrive(*CLIENTS)
    text = runfile(rounds=1, sections=f"{settings}\n[wire]\nup_bits = {bits}\n")
    bench.submit(text.replace('"fedavg"', f'"{algorithm}"'))
    return bench


def update_of(bench: Bench, task: TaskSpec, path: Path) -> Path:
    """Train on the client's digits as a device does."""
    data = Digits().load(DataSpec.parse(f"digits?clients=2&client={CLIENTS.index(task.client)}"))
    Executor(Digits(), data).run(
        task,
        personal=NoPersonalState(),
        broadcast=bench.payloads.path(task.payload_sha256.hex()),
        update=path,
        model=path,
    )
    return path


def read(bench: Bench, task: TaskSpec, path: Path) -> dict[str, EncodedTensor]:
    reader = PayloadReader(path.read_bytes(), bench._table(task))  # type: ignore[arg-type]
    return {name: reader[name] for name in reader.names}


def ticket(bench: Bench, task: TaskSpec, digest: str = "00") -> Ticket:
    found = bench.desk.begin_upload(task.client, task.task_id, digest)
    assert isinstance(found, Ticket)
    return found


def send(bench: Bench, task: TaskSpec, path: Path) -> None:
    with PayloadReader(path, bench._table(task)) as reader:  # type: ignore[arg-type]
        digest = reader.info.sha256.hex()
    check_update(path, ticket(bench, task, digest))
    size = path.stat().st_size
    bench.payloads.adopt(path, digest)
    arrived = Arrived(
        task_id=task.task_id,
        digest=digest,
        size=size,
        samples=10,
        metrics={},
        seconds=0.1,
        restarted=False,
        bytes_up=size,
    )
    assert bench.desk.accept(arrived) is Receipt.ACCEPTED


def run_round(bench: Bench, folder: Path) -> tuple[Tensors, dict[str, dict[str, EncodedTensor]]]:
    """Return the broadcast and what each client sent; the round is closed then."""
    sent = {}
    for name in CLIENTS:
        task = bench.task(name)
        before = bench.broadcast(task)
        path = update_of(bench, task, folder / f"{name}.payload")
        sent[name] = read(bench, task, path)
        send(bench, task, path)
    bench.settle()
    return before, sent


def full_precision(folder: Path) -> dict[str, Tensors]:
    """The differences that the same clients would send in full precision."""
    folder.mkdir()
    bench = started(folder, "fedavg", 'weighting = "uniform"', bits=32)
    before, sent = run_round(bench, folder)
    return {
        client: {name: t.decode() - before[name] for name, t in tensors.items()}  # type: ignore[operator]
        for client, tensors in sent.items()
    }


@pytest.mark.parametrize(
    ("algorithm", "settings", "dimensions"),
    [
        ("fedpaq", "", 0),
        ("uveqfed", 'reach = "all"', 2),
        ("uveqfed", 'lattice = "scalar"\nreach = "all"', 1),
    ],
)
def test_the_server_adds_the_mean_of_quantized_differences(
    tmp_path: Path, algorithm: str, settings: str, dimensions: int
) -> None:
    bench = started(tmp_path, algorithm, settings)
    before, sent = run_round(bench, tmp_path)
    exact = full_precision(tmp_path / "plain")
    for client, tensors in sent.items():
        for name, tensor in tensors.items():
            error = np.abs(tensor.decode() - exact[client][name]).max()  # type: ignore[operator]
            step = float(tensor.scale[1])
            if dimensions:
                assert tensor.encoding == DitheredLattice(4, dimensions)
                assert error <= step * (0.5 if dimensions == 1 else 1 / math.sqrt(3)) * 1.001
            else:
                assert tensor.encoding == UniformOffset(4)
                assert error <= step * 1.001
    after = bench.state(bench.record("test")["id"])
    for name, values in before.items():
        moves = [sent[client][name].decode() for client in CLIENTS]
        expected = values + (moves[0] + moves[1]) / np.float32(2)  # type: ignore[operator]
        np.testing.assert_allclose(after[name], expected, rtol=1e-6, atol=1e-7)


def test_fedpaq_is_fedavg_with_few_bits_up(tmp_path: Path) -> None:
    """Byte for byte, so that there is one implementation under two names."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    paq = started(tmp_path / "a", "fedpaq")
    avg = started(tmp_path / "b", "fedavg", 'weighting = "uniform"')
    named, plain = (run_round(b, tmp_path / b.root.name)[1] for b in (paq, avg))
    for client in CLIENTS:
        for name, tensor in plain[client].items():
            assert np.array_equal(named[client][name].segment, tensor.segment), name


def test_bytes_are_those_of_fedpaq(tmp_path: Path) -> None:
    sizes = {}
    for algorithm in ("fedpaq", "uveqfed"):
        (tmp_path / algorithm).mkdir()
        bench = started(tmp_path / algorithm, algorithm, bits=2)
        task = bench.task("a")
        path = update_of(bench, task, tmp_path / algorithm / "update")
        sizes[algorithm] = (path.stat().st_size, len(read(bench, task, path)))
    (paq, tensors), (lattice, _) = sizes["fedpaq"], sizes["uveqfed"]
    assert lattice - paq <= 8 * tensors
    assert lattice <= 1.02 * paq


def test_a_foreign_dither_is_refused(tmp_path: Path) -> None:
    bench = started(tmp_path, "uveqfed")
    task = bench.task("a")
    sent = read(bench, task, update_of(bench, task, tmp_path / "update"))
    name = list(sent)[2]
    own = dither_seed(task.run_seed, task.round, "a", name)
    delta = sent[name].decode()
    cases = {
        "another seed": quantize_lattice(delta, 4, 2, own + 1),
        "points of the hexagonal lattice at 4 bits": quantize_lattice(delta, 4, 1, own),
        "at 4 bits": quantize_lattice(delta, 5, 2, own),
    }
    for cause, tensor in cases.items():
        path = tmp_path / "altered"
        write_payload(path, list({**sent, name: tensor}.items()), bench._table(task))  # type: ignore[arg-type]
        with pytest.raises(UpdateError, match=cause):
            check_update(path, ticket(bench, task))
    write_payload(path, list(sent.items()), bench._table(task))  # type: ignore[arg-type]
    assert check_update(path, ticket(bench, task)).widths == {}


@pytest.mark.parametrize("algorithm", ["fedpaq", "uveqfed"])
def test_clients_that_train_together_send_what_they_send_alone(algorithm: str) -> None:
    text = runfile(rounds=2, clients=4, sections="[wire]\nup_bits = 4\n")
    text = text.replace('"fedavg"', f'"{algorithm}"')
    population = population_of(parse(text), clients=4, data="digits?clients=4&client={client}")
    losses = {}
    for batch in (1, 4):
        result = simulate(text, population=population, batch=batch)
        assert result.status == "finished", result.reason
        rounds = [entry for entry in result.record["history"] if entry["kind"] == "train"]
        sent = [task for entry in rounds for task in entry["clients"].values()]
        assert [task["status"] for task in sent] == ["counted"] * 8
        losses[batch] = [task["metrics"]["loss"] for task in sent]
    np.testing.assert_allclose(losses[1], losses[4], rtol=1e-3)


@pytest.mark.parametrize("algorithm", ["fedpaq", "uveqfed"])
def test_full_precision_is_not_these_methods(algorithm: str) -> None:
    text = runfile().replace('"fedavg"', f'"{algorithm}"')
    with pytest.raises(RunFileError, match=r"tiers\.all: .* wire\.up_bits"):
        parse(text)
    parse(text + "[wire]\nup_bits = 3\n")
    tiers = '[wire]\nup_bits = 3\n[[tiers]]\nname = "x"\nup_bits = 32\n'
    with pytest.raises(RunFileError, match=r"tiers\.x: "):
        parse(text + tiers)
