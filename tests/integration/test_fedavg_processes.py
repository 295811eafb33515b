"""FedAvg through real processes: same inputs, same model; bits on the wire; plain averaging."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from federation import Federation, federation, until

from motley.models.units import fresh_tensors, unit_table
from motley.seeding import derive
from motley.wire import PayloadReader
from motley.workload import DataSpec
from motley.workloads.digits import Digits

pytestmark = pytest.mark.processes

RUN = """
[run]
name = "{name}"
algorithm = "fedavg"
rounds = {rounds}
seed = 11
[workload]
name = "digits"
[clients]
expected = 2
[settings]
local_steps = 5
batch_size = 10
learning_rate = 0.1
[wire]
up_bits = {up}
down_bits = {down}
"""


def run(name: str = "digits", rounds: int = 3, up: int = 32, down: int = 32) -> str:
    return RUN.format(name=name, rounds=rounds, up=up, down=down)


def data(index: int) -> str:
    return f"digits?clients=2&client={index}&classes=4&train=40"


def start(bench: Federation, order: tuple[int, ...] = (0, 1)) -> None:
    bench.serve()
    for index in order:
        bench.client(f"c{index}", data(index))
        # The second starts after the first is known, so that the orders really differ.
        until(lambda i=index: bench.events("server", "client_enrolled"), "a client enrols")


def test_the_same_run_on_fresh_servers_in_another_order_ends_in_the_same_model(
    tmp_path: Path,
) -> None:
    digests = []
    for number, order in enumerate(((0, 1), (1, 0))):
        folder = tmp_path / str(number)
        folder.mkdir()
        with federation(folder) as bench:
            start(bench, order)
            record = bench.finished(bench.submit(run(up=8, down=8)))
            digests.append([e["state_after"] for e in record["history"] if e["kind"] == "train"])
            replay = bench.command("replay", record["id"], "--json")
            assert replay.stdout.count('"agrees": true') == 3
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 3


def test_full_precision_equals_plain_averaging_and_bits_shrink_the_wire(tmp_path: Path) -> None:
    with federation(tmp_path) as bench:
        start(bench)
        record = bench.finished(bench.submit(run(rounds=2)))
        bench.command("fetch", record["id"], "-o", str(tmp_path / "model"))
        table = unit_table(Digits().variants()["cnn1"].build()).tensor_table
        with PayloadReader(tmp_path / "model", table) as reader:
            model = {name: reader[name].decode() for name in reader.names}
        expected = plain_fedavg(rounds=2)
        for name, value in expected.items():
            np.testing.assert_array_equal(model[name], value)
        sizes = {32: update_bytes(record)}
        for bits in (8, 4):
            text = run(f"bits{bits}", rounds=2, up=bits, down=bits)
            sizes[bits] = update_bytes(bench.finished(bench.submit(text)))
        values = sum(row.size for row in table)
        for bits, size in sizes.items():
            # Scales: 8 bytes a tensor. Manifest: header and entries, 24 bytes a tensor at most.
            allowed = values * bits / 8 + (8 + 24) * len(table.rows)
            assert values * bits / 8 < size <= 1.02 * allowed, (bits, size)


def update_bytes(record: dict) -> int:
    """Return the bytes of one update."""
    counts = {
        client["bytes_up"]
        for entry in record["history"]
        if entry["kind"] == "train"
        for client in entry["clients"].values()
    }
    assert len(counts) == 1
    return counts.pop()


def plain_fedavg(rounds: int) -> dict[str, np.ndarray]:
    """FedAvg as a short loop: torch's own SGD, numpy's own mean; only draws are shared."""
    import torch

    from motley.training.batches import Batches

    torch.set_num_threads(1)
    workload = Digits()
    variant = workload.variants()["cnn1"]
    w = fresh_tensors(variant, derive(11, "init", "cnn1"))
    splits = [workload.load(DataSpec.parse(data(index))).train for index in range(2)]
    for number in range(rounds):
        results = []
        for index, split in enumerate(splits):
            model = variant.build()
            model.load_state_dict({name: torch.from_numpy(v.copy()) for name, v in w.items()})
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            batches = Batches(len(split), seed=11, client=f"c{index}", batch_size=10)
            for step in range(5):
                chosen = batches(number * 5 + step)
                optimizer.zero_grad()
                outputs = model(torch.from_numpy(split.inputs[chosen]))
                targets = torch.from_numpy(split.targets[chosen])
                torch.nn.functional.cross_entropy(outputs, targets).backward()
                optimizer.step()
            results.append({name: v.numpy().copy() for name, v in model.state_dict().items()})
        assert len({len(split) for split in splits}) == 1, "equal counts: the plain mean"
        w = {name: (results[0][name] + results[1][name]) / np.float32(2) for name in w}
    return w
