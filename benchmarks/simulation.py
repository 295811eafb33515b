"""Simulated clients against a plain PyTorch loop over clients, and what many clients cost.

    python benchmarks/simulation.py [--cases writers,lenet,thousand,ten-thousand] [--threads 1]
    python benchmarks/simulation.py --against flower --flower-env FOLDER

`writers` and `lenet` divide client-steps per second of `fedserver simulate` (whole rounds: plans,
training, encoding, checks, record, fold) by those of a loop that loads the global model, steps with
torch.optim.SGD and adds up, with neither record nor files. Rounds of both take turns in a process.
Processor seconds count all threads; on a busy machine they are the figure to look at.
The other two cases run alone in a process each and say what a round and the memory are.

With `--against flower --flower-env FOLDER` the task of `lenet` runs in Flower's simulation too, on
the same processors right before, in an environment that the first call makes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from flower_env import FLOWER, TORCH, prepare, variables
from report import Ratio, report
from simulation_workload import RandomImages

from fedserver.simulate.progress import Closed
from fedserver.simulate.simulation import simulate
from motley.logs import LogFormat, configure
from motley.task import TaskSpec
from motley.training.batches import Batches
from motley.workload import DataSpec

MAPPINGS = {"random": "simulation_workload:RandomImages"}


@dataclass(frozen=True)
class Case:
    """One task."""

    clients: int
    side: int
    steps: int
    rounds: int
    batch: int
    """Clients that train together."""
    samples: str
    rule: str
    """How batches are cut."""
    fraction: float = 1.0
    against: bool = True
    """Whether a plain loop takes turns."""

    def text(self, threads: int) -> str:
        """Return the run file."""
        return (
            '[run]\nname = "bench"\nalgorithm = "fedavg"\n'
            f"rounds = {self.rounds}\n"
            f'[workload]\nname = "random"\narguments = {{ side = {self.side} }}\n'
            f"[clients]\nexpected = {self.clients}\nfraction = {self.fraction}\n"
            "[keep]\nrounds = 1\n"
            f"[settings]\nlocal_steps = {self.steps}\n{self.rule}\nlearning_rate = 0.05\n"
            f'[simulate]\nthreads = {threads}\ndata = "random?client={{client}}&{self.samples}"\n'
        )


CASES = {
    # QuPeD's FEMNIST: 66 clients, 60 batches a pass, so about five samples in each.
    "writers": Case(66, 28, 30, 4, 11, "samples=300&spread=60", "batches_per_pass = 60"),
    "lenet": Case(1000, 32, 1, 3, 20, "samples=32", "batch_size = 32"),
    "thousand": Case(
        1000, 28, 10, 5, 20, "samples=100", "batch_size = 25", fraction=0.1, against=False
    ),
    "ten-thousand": Case(
        10_000, 28, 10, 3, 20, "samples=50", "batch_size = 25", fraction=0.01, against=False
    ),
}


@dataclass
class Times:
    """Seconds of one round each: on the clock, and of the processor."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def of(self, work: Callable[[], None]) -> None:
        """Time a piece of work."""
        began = time.perf_counter(), time.process_time()
        work()
        self.add(*began)

    def add(self, wall: float, processor: float) -> None:
        """Add what passed since these readings."""
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)


class Turns:
    """Watches a simulation, and lets the plain loop do a round after each of its rounds."""

    def __init__(self, loop: PlainLoop | None) -> None:
        self._loop = loop
        self.simulated, self.plain = Times(), Times()
        self._began = time.perf_counter(), time.process_time()

    def answered(self, task: TaskSpec) -> None:
        """Say nothing."""

    def closed(self, found: Closed) -> None:
        """Note the round's time and do the other side's."""
        self.simulated.add(*self._began)
        if self._loop is not None:
            self.plain.of(self._loop.round)
        self._began = time.perf_counter(), time.process_time()


class PlainLoop:
    """FedAvg as one writes it in an afternoon: the clients one by one on one model."""

    def __init__(self, case: Case) -> None:
        workload = RandomImages(case.side)
        self._case, self._model = case, workload.variants()["cnn1"].build()
        self._global = {n: t.clone() for n, t in self._model.state_dict().items()}
        options = dict(pair.split("=") for pair in case.samples.split("&"))
        self._data = []
        rule = dict([case.rule.replace("batches_per_pass", "per_pass").split(" = ")])
        for client in range(case.clients):
            train = workload.load(DataSpec("random", {**options, "client": str(client)})).train
            batches = Batches(
                len(train), seed=0, client=str(client), **{k: int(v) for k, v in rule.items()}
            )
            inputs, targets = torch.from_numpy(train.inputs), torch.from_numpy(train.targets)
            self._data.append((inputs, targets, batches))
        self._round = 0

    def round(self) -> None:
        """Train every client and take the mean."""
        steps, model = self._case.steps, self._model
        total = {n: torch.zeros_like(t) for n, t in self._global.items()}
        weight = sum(len(targets) for _, targets, _ in self._data)
        for inputs, targets, batches in self._data:
            model.load_state_dict(self._global)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            for step in range(steps):
                chosen = torch.from_numpy(batches(self._round * steps + step))
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(inputs[chosen]), targets[chosen])
                loss.backward()
                optimizer.step()
            for name, value in model.state_dict().items():
                total[name].add_(value, alpha=len(targets) / weight)
        self._global, self._round = total, self._round + 1


def run(name: str, threads: int) -> list[Ratio]:
    """Run a case; the first round warms up and is not counted."""
    torch.set_num_threads(threads)
    case = CASES[name]
    turns = Turns(PlainLoop(case) if case.against else None)
    result = simulate(case.text(threads), mappings=MAPPINGS, batch=case.batch, watcher=turns)
    assert result.status == "finished", result.reason
    ours, plain = turns.simulated, turns.plain
    steps = case.steps * round(case.fraction * case.clients)
    seconds = median(ours.wall[1:])
    detail = (
        f"{seconds:.2f} s a round, {steps / seconds:,.0f} steps/s; "
        f"{median(ours.processor[1:]):.2f} processor s"
    )
    if not case.against:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return [
            Ratio(f"{name}: seconds a round", seconds, detail=detail),
            Ratio(f"{name}: peak memory, GiB", peak, 4.0, detail=f"{result.seconds:.0f} s in all"),
        ]
    wall = median(p / o for p, o in zip(plain.wall[1:], ours.wall[1:], strict=True))
    processor = median(p / o for p, o in zip(plain.processor[1:], ours.processor[1:], strict=True))
    theirs = (
        f"; loop: {median(plain.wall[1:]):.2f} s, {median(plain.processor[1:]):.2f} processor s"
    )
    target = 5.0 if name == "writers" else None
    return [
        Ratio(f"{name}: steps per second over a plain loop", wall, target, True, detail + theirs),
        Ratio(f"{name}: steps per processor second", processor, None, True),
    ]


def in_flower(folder: Path, case: Case) -> list[float]:
    """Return seconds of each round of Flower's simulation of a case that takes one step."""
    python = prepare(folder, (FLOWER, TORCH))
    script = Path(__file__).with_name("flower_simulation.py")
    sizes = ["--clients", str(case.clients), "--rounds", str(case.rounds)]
    done = subprocess.run(
        [python, script, *sizes], stdout=subprocess.PIPE, check=True, env=variables(folder)
    )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def against_flower(folder: Path, threads: int, clients: int) -> list[Ratio]:
    """Run the `lenet` case in both simulations; each one's first round is not counted."""
    case = replace(CASES["lenet"], clients=clients)
    theirs = median(in_flower(folder, case)[1:])
    torch.set_num_threads(threads)
    turns = Turns(None)
    result = simulate(case.text(threads), mappings=MAPPINGS, batch=case.batch, watcher=turns)
    assert result.status == "finished", result.reason
    ours = median(turns.simulated.wall[1:])
    detail = f"{case.clients / ours:.0f} against {case.clients / theirs:.0f} clients a second"
    name = f"lenet, {clients} clients: clients per second over Flower's simulation"
    return [Ratio(name, theirs / ours, 20.0, True, detail)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--against", choices=["loop", "flower"], default="loop")
    parser.add_argument("--flower-env", type=Path, help="folder of Flower's environment")
    parser.add_argument("--clients", type=int, default=1000, help="with --against flower")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    configure(LogFormat.CONSOLE, logging.WARNING)
    if options.against == "flower":
        if options.flower_env is None:
            parser.error("--against flower needs --flower-env FOLDER")
        report(
            "simulation_flower",
            f"clients per second of `fedserver simulate` on {options.threads} thread(s) over those "
            "of Flower's simulation with an actor for each processor, whole rounds, on the clock",
            against_flower(options.flower_env, options.threads, options.clients),
        )
        return
    names = options.cases.split(",")
    if options.child:
        print(json.dumps([asdict(ratio) for ratio in run(names[0], options.threads)]))
        return
    ratios = []
    for name in names:  # each in a process of its own: the peak of memory is its own
        command = [sys.executable, __file__, "--child", "--cases", name]
        command += ["--threads", str(options.threads)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, cwd=Path(__file__).parent
        )
        ratios += [Ratio(**entry) for entry in json.loads(done.stdout.splitlines()[-1])]
        print(f"{name} is done", file=sys.stderr)
    report(
        "simulation",
        "client-steps of `fedserver simulate`, FedAvg, whole rounds, over a plain PyTorch loop on "
        f"{options.threads} thread(s), rounds interleaved; and what many clients cost",
        ratios,
    )


if __name__ == "__main__":
    main()
