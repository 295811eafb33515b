"""FedP3 through real processes: each client sends its own layers, and both models are scored."""

from __future__ import annotations

from pathlib import Path

import pytest
from federation import Federation, federation

from motley.models.units import variant_table
from motley.plan import Plan
from motley.prune.traffic import traffic
from motley.runfile import parse
from motley.sparsity import Sparsity
from motley.wire import PayloadReader
from motley.workloads.digits import Digits

pytestmark = pytest.mark.processes

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUN = (EXAMPLES / "fedp3-digits.toml").read_text()
LAYERS = {
    "c0": ("conv1", "conv2"),
    "c1": ("conv2", "fc1"),
    "c2": ("fc1", "fc2"),
    "c3": ("conv1", "fc2"),
}


def run(root: Path, text: str, order: tuple[int, ...]) -> tuple[dict, Federation]:
    root.mkdir()
    with federation(root) as bench:
        bench.serve()
        for index in order:
            bench.client(f"c{index}", f"digits?clients=4&client={index}")
        record = bench.finished(bench.submit(text))
        replay = bench.command("replay", record["id"], "--json")
        rounds = parse(text).run.rounds
        assert replay.stdout.count('"agrees": true') == rounds
        return record, bench


def test_four_groups_end_to_end(tmp_path: Path) -> None:
    record, bench = run(tmp_path / "first", RUN, (0, 1, 2, 3))
    table = variant_table(Digits().variants()["cnn1"])
    trained = [entry for entry in record["history"] if entry["kind"] == "train"]
    assert len(trained) == 6
    for entry in trained:
        for name, layers in LAYERS.items():
            client = entry["clients"][name]
            path = bench.data / "payloads" / client["update"][:2] / client["update"]
            with PayloadReader(path, table.tensor_table) as reader:
                assert {table[tensor].unit for tensor in reader.names} == {*layers, "fc3"}
                values = sum(tensor.size for _, tensor in reader.items())
            plan = Plan(
                variant="cnn1",
                upload=(*layers, "fc3"),
                sparsity=Sparsity(final="fc3", down_keep=0.9),
            )
            planned = traffic(table, plan)
            assert values == planned.up
            # Values, a manifest, and frames on the way; masks come down as bitmaps.
            assert client["bytes_up"] <= 1.02 * 4 * values + 24 * len(table)
            most = 4 * planned.down + table.parameters_count / 8
            assert client["bytes_down"] <= 1.02 * most + 40 * len(table)
    scores = record["history"][-1]["metrics"]
    assert scores["global_accuracy"] > 0.5, scores
    assert scores["personal_accuracy"] > 0.5, scores
    assert abs(scores["held_out_accuracy"] - scores["global_accuracy"]) < 0.1
    for name in LAYERS:
        assert list((tmp_path / "first" / name / "models").glob("*.motley"))


def test_the_order_in_which_clients_connect_changes_nothing(tmp_path: Path) -> None:
    text = RUN.replace("rounds = 6", "rounds = 2").replace("local_steps = 40", "local_steps = 5")
    text = text.replace("keep = 0.9\nlocal_p", "keep = 0.9\nupload_keep = 0.5\nlocal_p")
    assert "upload_keep" in text
    first, _ = run(tmp_path / "first", text, (0, 1, 2, 3))
    second, _ = run(tmp_path / "second", text, (3, 1, 0, 2))
    assert first["state"] == second["state"]


def test_the_papers_run_file_is_valid() -> None:
    found = parse((EXAMPLES / "fedp3-cifar10.toml").read_text())
    assert found.settings["layers"] == "opu2"
    assert found.settings["keep"] == 0.9
