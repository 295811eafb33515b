"""A user's own model and data, from examples/own_workload, through real processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from federation import Federation, federation

from motley.wire import Codebook, PayloadReader

pytestmark = pytest.mark.processes

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_workload"
TIERS = {"tablet-1": "tablet", "watch-1": "wearable"}
CENTRES = {
    "tablet-1": {"body.0.weight": 4, "body.1.weight": 4},
    "watch-1": {"body.0.weight": 2},
}
CHANCE = 0.63
"""Accuracy of calling every tumour benign: 357 of 569."""


def centres(model: Path) -> dict[str, int]:
    """Return the number of different values of each tensor that is stored as codes and centres."""
    found = {}
    with PayloadReader(model) as reader:
        for name in reader.names:
            tensor = reader[name]
            if isinstance(tensor.encoding, Codebook):
                found[name] = tensor.encoding.size
                assert len(set(tensor.decode().reshape(-1).tolist())) <= tensor.encoding.size
    return found


def finished_model(bench: Federation, client: str) -> tuple[Path, dict[str, float]]:
    """Return a client's packed model and the metrics beside it."""
    [facts] = (bench.root / client / "models").glob("*.json")
    facts_of = json.loads(facts.read_text())
    return facts.parent / facts_of["file"], facts_of["metrics"]


def test_the_example_runs_as_its_page_says(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "tumours.py", tmp_path)
    mapping = ("--workload", "tumours=tumours:Tumours")
    with federation(tmp_path, forked=False) as bench:
        bench.serve(*mapping)
        for index, (name, tier) in enumerate(TIERS.items()):
            bench.client(name, f"bundled?clients=2&client={index}", "--tier", tier, *mapping)
        record = bench.finished(bench.submit((EXAMPLE / "run.toml").read_text()))
        assert record["round"] == record["rounds"]
        assert {c["name"]: c["tier"] for c in record["clients"]} == TIERS
        for client in record["clients"]:
            scores = client["metrics"]["finish"]
            assert scores["accuracy"] > CHANCE + 0.2, client["name"]
            assert 0.5 < scores["belief"] <= 1
            model, metrics = finished_model(bench, client["name"])
            assert centres(model) == CENTRES[client["name"]]
            assert model.stat().st_size == metrics["packed_bytes"] < metrics["dense_bytes"]
