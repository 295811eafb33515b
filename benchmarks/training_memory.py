"""Peak memory of local training by bit-width: ResNet-20 on images of 32x32, in batches of 128.

    python benchmarks/training_memory.py

A child process for each width takes a few steps with the client half of FedMPQ, and one of FedAvg
in full precision; what counts is the peak of resident memory above what was there before training:
imports, data and broadcast. Weights are a small part of it, activations the large one, and those
do not shrink with the weights' widths. Needs Linux, which tells a process its own peak.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from report import Ratio, report

from motley.algorithms import registry
from motley.algorithms.base import Algorithm, Broadcast, ClientContext, Member, Moment
from motley.models.units import fresh_tensors, variant_table
from motley.plan import FULL_PRECISION, Plan
from motley.task import TaskKind, TaskSpec
from motley.wire import encode_dense, quantize_planes
from motley.workload import DataSpec, LocalData, Split, Variant, Workload
from motley.workloads.images import Cifar10

WIDTHS = (1, 2, 4, 6, 8)
VARIANT = "resnet20"
BATCH = 128


class RandomImages(Workload):
    """Two batches of random images; how memory is used does not hang on what they show."""

    def variants(self) -> Mapping[str, Variant]:
        return Cifar10().variants()

    def load(self, spec: DataSpec) -> LocalData:
        rng = np.random.default_rng(0)
        inputs = rng.normal(size=(2 * BATCH, 3, 32, 32)).astype(np.float32)
        targets = rng.integers(0, 10, 2 * BATCH)
        return LocalData(train=Split(inputs, targets), test=Split(inputs[:1], targets[:1]))


def received(plan: Plan, ends: bool) -> Broadcast:
    """Return the initial model as it reaches a client of this plan."""
    variant = RandomImages().variants()[VARIANT]
    tensors = fresh_tensors(variant, 0)
    encoded = {}
    for row in variant_table(variant, ends=ends):
        width = plan.planes_of(row.unit, quantized=row.quantized)
        values = tensors[row.name]
        encoded[row.name] = quantize_planes(values, width) if width else encode_dense(values)
    return Broadcast(encoded)


def task(algorithm: Algorithm, bits: int) -> TaskSpec:
    units = variant_table(RandomImages().variants()[VARIANT], ends=algorithm.quantizes_ends)
    member = Member(name="c0", tier="t", variant=VARIANT, units=units, bits=bits)
    return TaskSpec(
        task_id="t",
        kind=TaskKind.TRAIN,
        run_id="r",
        run_name="memory",
        round=1,
        rounds=1,
        algorithm=algorithm.name,
        workload="images",
        plan=algorithm.plan(member, Moment(round=1, rounds=1, seed=0)),
        run_seed=0,
        client="c0",
        global_variant=VARIANT,
    )


def measure(bits: int, steps: int) -> int:
    """Train in this process; return the peak of resident memory above the start, in bytes."""
    torch.set_num_threads(1)
    name = "fedavg" if bits == FULL_PRECISION else "fedmpq"
    settings = {"local_steps": steps, "batch_size": BATCH, "momentum": 0.9, "learning_rate": 0.01}
    algorithm = registry.find(name).configure(settings)
    workload = RandomImages()
    job = task(algorithm, bits)
    broadcast = received(job.plan, algorithm.quantizes_ends)
    context = ClientContext(task=job, workload=workload, data=workload.load(DataSpec("random")))
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = resident("VmRSS")
    algorithm.train(context, broadcast, None)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Return a field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def child(bits: int, steps: int) -> int:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--steps", str(steps), "--width", str(bits)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--width", type=int, help="measure this one here; 32: full precision")
    options = parser.parse_args()
    if options.width:
        print(measure(options.width, options.steps))
        return
    full = child(FULL_PRECISION, options.steps)
    rows = [Ratio("fp32", 1.0, detail=f"{full / 1e6:.1f} MB")]
    for bits in WIDTHS:
        peak = child(bits, options.steps)
        label = f"{bits} bit{'s' if bits > 1 else ''}"
        rows.append(Ratio(label, peak / full, detail=f"{peak / 1e6:.1f} MB"))
    report(
        "training_memory",
        f"peak resident memory of local training above what was there before it, over that of "
        f"full precision; {VARIANT}, batch {BATCH}, {options.steps} steps, one thread",
        rows,
    )


if __name__ == "__main__":
    main()
