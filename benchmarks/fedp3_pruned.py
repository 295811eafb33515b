"""What pruning alone does to a model of FedP3, before anybody trains it further.

    python benchmarks/fedp3_pruned.py --data FOLDER

Simulates ten rounds of the run "opu2, p = 0.9" of fedp3_accuracy.py on Fashion-MNIST, then prunes
the server's model as it would come down. A ratio is the accuracy on published test images over that
of the whole model.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import numpy as np
import structlog
import torch
from fedp3_accuracy import RUN, Schedule
from report import Ratio, report

from fedserver.simulate.simulation import simulate
from motley.algorithms.base import Tensors
from motley.models.units import UnitTable, load_tensors, variant_table
from motley.plugins import create
from motley.prune.layers import choosable_units, consecutive
from motley.prune.masks import by_magnitude, is_prunable
from motley.wire import PayloadReader
from motley.workload import DataSpec, Split, Variant

KEEPS = (0.9, 0.7, 0.5, 0.3, 0.1)
ROUNDS, IMAGES = 10, 5000


def trained(folder: Path, table: UnitTable) -> Tensors:
    """Return the server's model after the run."""
    schedule = Schedule(rounds=ROUNDS, every=ROUNDS)
    values = {**asdict(schedule), "set": "fashion-mnist", "data": folder, "seed": 0}
    with tempfile.TemporaryDirectory() as place:
        text = RUN.format(**values, settings='layers = "opu2"\nkeep = 0.9')
        digest = simulate(text, directory=Path(place)).record["state"]
        path = Path(place) / "payloads" / digest[:2] / digest
        with PayloadReader(path, table.tensor_table) as reader:
            return {name: reader[name].decode() for name in reader.names}


def pruned(state: Tensors, table: UnitTable, keep: float, units: Collection[str]) -> Tensors:
    """Return the model with the weights of these units pruned."""
    found = dict(state)
    for row in table:
        if is_prunable(row) and row.unit in units:
            values = np.asarray(state[row.name], np.float32)
            found[row.name] = values * by_magnitude(values, keep).bits().reshape(row.shape)
    return found


def accuracy(variant: Variant, state: Tensors, test: Split) -> float:
    """Return the share of right answers on the first images."""
    module = variant.build().eval()
    load_tensors(module, state)
    inputs, targets = torch.from_numpy(test.inputs), torch.from_numpy(test.targets)
    with torch.no_grad():
        right = module(inputs[:IMAGES]).argmax(1) == targets[:IMAGES]
    return float(right.float().mean())


def main() -> None:
    """Print the table and write `benchmarks/out/fedp3_pruned.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of Fashion-MNIST")
    folder = parser.parse_args().data
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    workload = create("fashion-mnist", {}, {})
    variant = workload.variants()["cnn1"]
    table = variant_table(variant)
    test = workload.load(DataSpec.parse(f"{folder}?clients=1&client=0")).test
    state, units = trained(folder, table), choosable_units(table)
    whole, rows = accuracy(variant, state, test), []
    size = _squares(state, table, units)
    for keep in KEEPS:
        every = pruned(state, table, keep, units)
        groups = [set(units) - set(consecutive(units, group, 2)) for group in range(len(units))]
        gets = [accuracy(variant, pruned(state, table, keep, group), test) for group in groups]
        detail = f"{100 * _squares(every, table, units) / size:.1f} % of the squared norm stay"
        rows.append(
            Ratio(f"p = {keep}, as OPU2 gets it", statistics.fmean(gets) / whole, detail="4 groups")
        )
        part = accuracy(variant, every, test) / whole
        rows.append(Ratio(f"p = {keep}, all layers but the last", part, detail=detail))
    what = f"accuracy of the pruned model over {whole:.3f} of the whole one, Fashion-MNIST"
    report("fedp3_pruned", what, rows)


def _squares(state: Tensors, table: UnitTable, units: Collection[str]) -> float:
    chosen = [row.name for row in table if is_prunable(row) and row.unit in units]
    return sum(float(np.square(state[name], dtype=np.float64).sum()) for name in chosen)


if __name__ == "__main__":
    main()
