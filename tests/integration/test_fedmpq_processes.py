"""FedMPQ through real processes: every client its own widths, in training and on the wire."""

from __future__ import annotations

from pathlib import Path

import pytest
from federation import federation

from motley.models.units import variant_table
from motley.wire import PayloadReader, UniformPlanes
from motley.workloads.digits import Digits

pytestmark = pytest.mark.processes

BUDGETS = {"c0": 2, "c1": 4, "c2": 6, "c3": 8}
RUN = """
[run]
name = "mixed"
algorithm = "fedmpq"
rounds = 5
seed = 3
global_variant = "mlp"
[workload]
name = "digits"
[clients]
expected = 4
[settings]
local_steps = 20
batch_size = 16
learning_rate = 0.1
prune_below = 0.03
[evaluate]
every = 5
held_out = "digits"
""" + "".join(f'[[tiers]]\nname = "b{v}"\nbits = {v}\n' for v in BUDGETS.values())


def test_four_budgets_end_to_end(tmp_path: Path) -> None:
    with federation(tmp_path) as bench:
        bench.serve()
        for index, (name, budget) in enumerate(BUDGETS.items()):
            data = f"digits?clients=4&client={index}&train=200"
            bench.client(name, data, "--tier", f"b{budget}")
        record = bench.finished(bench.submit(RUN))
        table = variant_table(Digits().variants()["mlp"], ends=True)
        sizes = {row.unit: row.size for row in table if row.quantized}
        tail = sum(row.nbytes for row in table if not row.quantized)
        trained = [entry for entry in record["history"] if entry["kind"] == "train"]
        for entry in trained:
            for name, budget in BUDGETS.items():
                client = entry["clients"][name]
                planned = client["bits"]
                assert sum(sizes[u] * planned[u] for u in sizes) <= budget * sum(sizes.values())
                path = bench.data / "payloads" / client["update"][:2] / client["update"]
                with PayloadReader(path, table.tensor_table) as reader:
                    sent = {u: reader[f"{u}.weight"].encoding for u in sizes}
                assert all(isinstance(e, UniformPlanes) for e in sent.values())
                assert all(sent[u].bits <= planned[u] for u in sizes)  # type: ignore[attr-defined]
                bits = sum(sizes[u] * (sent[u].bits + 1) for u in sizes)  # type: ignore[attr-defined]
                # Steps, and the bits that fill the last byte of each plane, besides the manifest.
                most = bits / 8 + tail + (4 + 9) * len(sizes)
                assert path.stat().st_size <= 1.02 * most + 24 * len(table)
        widths = [tuple(entry["clients"]["c0"]["bits"].values()) for entry in trained]
        assert widths[0] == (2,) * len(sizes)
        assert widths[1] != widths[0], "allocation gives layers widths of their own"
        held_out = record["history"][-1]["metrics"]["held_out_accuracy"]
        assert held_out > 0.5, held_out
        replay = bench.command("replay", record["id"], "--json")
        assert replay.stdout.count('"agrees": true') == 5
        for name in BUDGETS:
            assert list((tmp_path / name / "models").glob("*.motley"))
