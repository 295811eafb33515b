"""Fold updates of a model into its next state, in a process of its own: seconds and peak memory.

`python benchmarks/core_fold.py UPDATES MEGABYTES BITS LOOPS` prints both, with compiled loops (1)
or without (0); `core.py` starts it. All updates are one file under many names: as much is read and
added, and the disk holds it once. Loops are compiled, or loaded, before the clock starts.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from wire_processes import peak
from wire_workload import Identity

from fedserver.aggregation.fold import Contribution, fold
from fedserver.aggregation.reducers import weighted_mean
from motley.models.units import fresh_tensors, variant_table
from motley.wire import compiled, encode_dense, quantize_uniform, write_payload


def measured(updates: int, megabytes: float, bits: int, with_loops: bool) -> tuple[float, float]:
    """Return (seconds, peak bytes) of a fold in a child."""
    numbers = (updates, megabytes, bits, int(with_loops))
    words = [sys.executable, __file__, *map(str, numbers)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    seconds, most = done.stdout.split()
    return float(seconds), float(most)


def make(folder: Path, megabytes: float, bits: int) -> None:
    """Write a state and an update; a process of its own, so that its memory does not count."""
    variant = Identity(megabytes).variants()["arrays"]
    table, values = variant_table(variant), fresh_tensors(variant, 1)
    rng = np.random.default_rng(0)
    state = [(name, encode_dense(array, copy=False)) for name, array in values.items()]
    sent = [
        (name, tensor if bits == 32 else quantize_uniform(values[name], bits, rng))
        for name, tensor in state
    ]
    write_payload(folder / "state", state, table.tensor_table)
    write_payload(folder / "update", sent, table.tensor_table)


def run(folder: Path, updates: int, megabytes: float, bits: int) -> float:
    """Fold and return the seconds."""
    contributions = [
        Contribution(f"c{number:03d}", folder / "update", bits < 32, 1.0)
        for number in range(updates)
    ]
    began = time.perf_counter()
    fold(
        table=variant_table(Identity(megabytes).variants()["arrays"]),
        state=folder / "state",
        contributions=contributions,
        reducer=weighted_mean,
        finish_tile=lambda state, reduced: reduced,
        out=folder / "out",
    )
    return time.perf_counter() - began


def main() -> None:
    updates, megabytes, bits = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    if len(sys.argv) > 5:
        make(Path(sys.argv[5]), megabytes, bits)
        return
    with_loops = sys.argv[4:5] == ["1"]
    compiled.usage.pays_from = 0 if with_loops else math.inf
    if with_loops and compiled.load() is None:
        raise SystemExit("numba is not installed, or MOTLEY_COMPILED is 0")
    with tempfile.TemporaryDirectory() as folder:
        words = [*sys.argv[1:4], "0", folder]
        subprocess.run([sys.executable, __file__, *words], check=True)
        seconds = run(Path(folder), updates, megabytes, bits)
        print(seconds, peak("self"))


if __name__ == "__main__":
    main()
