"""FedMPQ through real processes: every client its own widths, in training and on the wire."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from federation import federation

from motley.models.units import UnitTable, variant_table
from motley.runfile import parse
from motley.wire import PayloadReader, UniformPlanes
from motley.workloads.digits import Digits

pytestmark = pytest.mark.processes

RUN = (Path(__file__).resolve().parents[2] / "examples" / "fedmpq-digits.toml").read_text()


def sent_widths(path: Path, table: UnitTable) -> dict[str, int]:
    """Return the width of each layer of an update, and check that it came in planes."""
    widths = {}
    with PayloadReader(path, table.tensor_table) as reader:
        for unit in table.quantized_sizes:
            encoding = reader[f"{unit}.weight"].encoding
            assert isinstance(encoding, UniformPlanes)
            assert encoding.present == (1 << encoding.bits) - 1
            widths[unit] = encoding.bits
    return widths


def most_bytes(sent: dict[str, int], table: UnitTable) -> float:
    """Return what an update of these widths may take: 2 % above its bits, and the manifest."""
    sizes = table.quantized_sizes
    bits = sum(sizes[u] * (sent[u] + 1) for u in sizes)
    tail = sum(row.nbytes for row in table if not row.quantized)
    # Besides the bits: a step of 4 bytes, and what fills the last byte of each plane.
    return 1.02 * (bits / 8 + tail + (4 + 9) * len(sizes)) + 24 * len(table)


def test_the_example_end_to_end(tmp_path: Path) -> None:
    runfile = parse(RUN)
    budgets = {f"c{n}": tier.bits for n, tier in enumerate(runfile.tiers)}
    assert len(set(budgets.values())) == 4
    table = variant_table(Digits().variants()[runfile.run.global_variant], ends=True)
    sizes = table.quantized_sizes
    with federation(tmp_path) as bench:
        bench.serve()
        for index, (name, budget) in enumerate(budgets.items()):
            bench.client(name, f"digits?clients=4&client={index}", "--tier", f"b{budget}")
        record = bench.finished(bench.submit(RUN))
        trained = [entry for entry in record["history"] if entry["kind"] == "train"]
        for entry in trained:
            for name, budget in budgets.items():
                client = entry["clients"][name]
                planned = client["bits"]
                assert sum(sizes[u] * planned[u] for u in sizes) <= budget * sum(sizes.values())
                path = bench.data / "payloads" / client["update"][:2] / client["update"]
                sent = sent_widths(path, table)
                assert client["sent_bits"] == sent
                assert all(sent[u] <= planned[u] for u in sizes)
                assert path.stat().st_size <= most_bytes(sent, table)
        widths = [{n: tuple(c["bits"].values()) for n, c in e["clients"].items()} for e in trained]
        assert {name: set(bits) for name, bits in widths[0].items()} == {
            name: {budget} for name, budget in budgets.items()
        }
        for later in widths[1:]:
            assert len(set(later.values())) == 4, "every budget has a plan of its own"
            assert len(set(later["c0"])) > 1, "layers have widths of their own"
        held_out = record["history"][-1]["metrics"]["held_out_accuracy"]
        assert held_out > 0.6, held_out
        replay = bench.command("replay", record["id"], "--json")
        assert replay.stdout.count('"agrees": true') == runfile.run.rounds
        for name in budgets:
            assert list((tmp_path / name / "models").glob("*.motley"))

        shown = json.loads(bench.command("show", record["id"], "--bits", "--json").stdout)
        assert shown["round"] == runfile.run.rounds
        assert shown["layers"] == list(sizes)
        assert [tuple(c["planned"].values()) for c in shown["clients"]] == list(widths[-1].values())
        assert all(
            client["planned_average"] <= budget
            for client, budget in zip(shown["clients"], budgets.values(), strict=True)
        )
        text = bench.command("show", record["id"], "--bits", "--round", "1").stdout
        assert text.startswith("round 1 (closed)")
        assert all(name in text for name in budgets)
        refused = bench.command("show", record["id"], "--bits", "--round", "99", check=False)
        assert refused.returncode == 1
        assert "has no training round 99" in refused.stderr
