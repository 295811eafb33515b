"""Seconds a round of runs that share a device, side by side.

    python benchmarks/gpu_rounds.py [--device cuda] [--runs 12] [--clients 50] [--seconds 20]
        [--methods local fedavg ...] [--data FOLDER]

Each run is a process that trains a row of the table `quped-2-cifar10-full`; methods take turns
until there are so many runs. Without a folder of data sets images are drawn at random: what is
measured is time, not learning. Counted are the rounds that end in the last half of the seconds,
when all train. NVIDIA's service for sharing a card (`nvidia-cuda-mps-control -d`) is started or not
before this.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "papers"))
TABLE = "quped-2-cifar10-full"
METHODS = (
    *("local", "fedavg", "quped", "quped-2bit"),
    *("perfedavg", "pfedme", "fml", "qupel-2bit"),
)


class Watch:
    """Notes when rounds end; ends the run at a time."""

    def __init__(self, ends: float) -> None:
        self.seen: list[float] = []
        self._ends = ends

    def answered(self, task: object) -> None:
        """Say nothing."""

    def closed(self, found: object) -> None:
        """Note the time; raise TimeoutError when it is over."""
        self.seen.append(time.time())
        if self.seen[-1] > self._ends:
            raise TimeoutError


def train(
    method: str, *, clients: int, device: str, folder: Path, ends: float, since: float
) -> float:
    """Train a row until `ends`; return its seconds a round from `since` on, NaN if none ended."""
    import rows
    import structlog
    import tables
    import torch

    from fedserver.simulate.population import population_of
    from fedserver.simulate.simulation import simulate
    from motley.runfile import parse

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    torch.set_num_threads(1)
    table, watch = tables.load(TABLE), Watch(ends)
    text = rows.shortened(table.run_file(method, 0), 100_000, clients, {})
    runfile = parse(text)
    data = table.data_of(table.data, folder).replace("{clients}", "50")
    tiers = {runfile.tiers[0].name: clients}
    population = population_of(runfile, data=data, tiers=tiers, clients=clients)
    with suppress(TimeoutError):
        simulate(text, population=population, batch=clients, device=device, watcher=watch)
    counted = [moment for moment in watch.seen if moment >= since]
    return (counted[-1] - counted[0]) / (len(counted) - 1) if len(counted) > 1 else float("nan")


def drawn(folder: Path) -> None:
    """Write random images in the layout of CIFAR-10's binary version."""
    place = folder / "cifar-10-batches-bin"
    place.mkdir()
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        rows = rng.integers(0, 256, (10_000, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(10_000) % 10
        rows.tofile(place / f"{name}.bin")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or Path(temporary)
        if options.data is None:
            drawn(folder)
        methods = [options.methods[n % len(options.methods)] for n in range(options.runs)]
        now = time.time()
        with get_context("spawn").Pool(options.runs) as pool:
            work = partial(
                train,
                clients=options.clients,
                device=options.device,
                folder=folder,
                ends=now + options.seconds,
                since=now + options.seconds / 2,
            )
            found = pool.map(work, methods, chunksize=1)
    for method, seconds in zip(methods, found, strict=True):
        print(json.dumps({"method": method, "seconds_a_round": round(seconds, 4)}))


if __name__ == "__main__":
    main()
