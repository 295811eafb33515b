"""What does not travel in planes, and what it is worth: fp32, fp16, and statistics left out.

    python benchmarks/fedmpq_tail.py [--data FOLDER]

FedMPQ with the tail in fp32 and in fp16, on the case of `fedmpq_tables.py`. Training never reads
running statistics, so a run without them ends in the same weights; its model is then tested with
statistics taken anew from a few hundred training images, or from each test batch.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog
import torch
from fedmpq_methods import BUDGETS, METHODS, PARTITIONS, Schedule, run_file, tier_counts
from fedmpq_workload import FashionSmall
from report import OUT, environment
from torch import nn

from fedserver.simulate.population import population_of
from fedserver.simulate.simulation import simulate
from motley.models.units import load_tensors, variant_table
from motley.runfile import parse
from motley.wire import PayloadReader
from motley.workload import DataSpec, Split

RATE = 0.1
SCHEDULE = Schedule(rounds=12)
"""Of the figures in docs/algorithms.md."""
SAMPLES = 512
"""Training images that statistics are taken from anew."""
Tensors = dict[str, npt.NDArray[np.generic]]


def trained(tail: str, partition: str, seed: int, folder: str) -> tuple[Tensors, float]:
    """Return the global model of a run, and the mean bytes of an update."""
    method = replace(METHODS["fedmpq"], settings={**METHODS["fedmpq"].settings, "tail": tail})
    text = run_file(method, rate=RATE, seed=seed, schedule=SCHEDULE, folder=folder)
    data = f"{folder}?clients={{clients}}&client={{client}}{PARTITIONS[partition]}&seed={seed}"
    with tempfile.TemporaryDirectory() as directory:
        result = simulate(
            text,
            population=population_of(
                parse(text), clients=len(BUDGETS), data=data, tiers=tier_counts(method), threads=1
            ),
            directory=Path(directory),
            mappings={"fashion": "fedmpq_workload:FashionSmall"},
        )
        table = variant_table(FashionSmall().variants()["small"], ends=True).tensor_table
        state = result.record["state"]
        with PayloadReader(Path(directory) / "payloads" / state[:2] / state, table) as reader:
            tensors = {name: reader[name].decode() for name in reader.names}
    sent = [
        task["bytes_up"]
        for entry in result.record["history"]
        if entry["kind"] == "train"
        for task in entry["clients"].values()
    ]
    return tensors, sum(sent) / len(sent)


def accuracy(module: nn.Module, split: Split) -> float:
    """Return the share of right answers, in whichever mode the model is."""
    right = 0
    with torch.no_grad():
        for start in range(0, len(split), 250):
            outputs = module(torch.from_numpy(split.inputs[start : start + 250]))
            right += int((outputs.argmax(1).numpy() == split.targets[start : start + 250]).sum())
    return right / len(split)


def scores(tensors: Tensors, images: Split, test: Split) -> dict[str, float]:
    """Return the accuracies with averaged statistics, with new ones, and with the batch's own."""
    module = FashionSmall().variants()["small"].build()
    load_tensors(module, tensors)
    found = {"averaged statistics": accuracy(module.eval(), test)}
    module.train()
    found["statistics of each test batch"] = accuracy(module, test)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.reset_running_stats()
            child.momentum = None  # the plain mean over batches
    accuracy(module, images)
    found["statistics taken anew"] = accuracy(module.eval(), test)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(os.environ.get("MOTLEY_DATA_DIR", "")) / "fashion-mnist"
    parser.add_argument("--data", type=Path, default=default, help="folder of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    torch.set_num_threads(1)
    whole = FashionSmall().load(DataSpec(str(options.data)))
    chosen = np.random.default_rng(0).choice(len(whole.train), SAMPLES, replace=False)
    images = Split(whole.train.inputs[chosen], whole.train.targets[chosen])
    rows: list[Mapping[str, object]] = []
    for seed in range(options.seeds):
        for partition in PARTITIONS:
            for tail in ("fp32", "fp16"):
                tensors, sent = trained(tail, partition, seed, str(options.data))
                found = scores(tensors, images, whole.test)
                rows.append(
                    {"partition": partition, "tail": tail, "seed": seed, "up": sent, **found}
                )
                print(rows[-1], flush=True)
    OUT.mkdir(exist_ok=True)
    content = {"rows": rows, **environment()}
    (OUT / "fedmpq_tail.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
