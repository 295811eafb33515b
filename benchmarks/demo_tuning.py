"""QuPeD against training alone on the demo, without its processes: same run files, same figures.

    python benchmarks/demo_tuning.py                      # what the run files say, seeds 0 to 4
    python benchmarks/demo_tuning.py --seeds 100 101 --only quped --set quped.learning_rate=0.2

Clients and their tiers are those of `examples/demo.py`, settings and tiers those of the two run
files there. Every task goes through the daemons' executor and every round through the server's
fold, in this process and without a network, so a seed's figures are those of
`examples/demo.py --seed SEED`. A seed sets the partition (four classes and forty training samples
a client; the rest of its share is its test set), the initial models and the batches.

Accuracy is that of each client's packed model after the last round, read back from its file; no
round is chosen by its accuracy. Settings are chosen on seeds from 100 on and reported on 0 to 4.
Both algorithms may decay their learning rate; training alone does best without, at 0.2.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from report import Ratio, report

from fedserver.aggregation.fold import Contribution, fold
from motley.algorithms import registry
from motley.algorithms.base import Algorithm, Member, Moment, Tensors
from motley.execution.executor import Executor
from motley.runfile import RunFile, Tier, parse
from motley.task import TaskKind, TaskSpec
from motley.training.personal import initial_tensors
from motley.wire import encode_dense, write_payload
from motley.workload import DataSpec, Scalar
from motley.workloads.digits import Digits

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
RUN_FILES = {"local": "digits-alone.toml", "quped": "digits-quped.toml"}
CLIENTS: dict[str, str] = runpy.run_path(str(EXAMPLES / "demo.py"))["CLIENTS"]
"""Tier by client, in the order of the data specs' client indices."""
Accuracies = dict[str, float]
"""Accuracy by client, in percent."""


@dataclass
class MemoryStore:
    """The newest personal state of a client."""

    version: str = ""
    tensors: Tensors = field(default_factory=dict)

    def load(self, version: str) -> Tensors | None:
        return self.tensors if version == self.version else None

    def save(self, version: str, tensors: Tensors) -> None:
        self.version, self.tensors = version, tensors


class Device:
    """One client of the demo: its data, its personal state and its place in the run."""

    def __init__(self, index: int, name: str, tier: Tier, runfile: RunFile, seed: int) -> None:
        spec = f"digits?clients={len(CLIENTS)}&client={index}&classes=4&train=40&seed={seed}"
        workload, wire = Digits(), runfile.wire
        self.executor = Executor(workload, workload.load(DataSpec.parse(spec)))
        self.store = MemoryStore()
        variant = tier.variant or next(iter(workload.variants()))
        self.member = Member(
            name=name,
            tier=tier.name,
            variant=variant,
            units=self.executor.table(variant),
            bits=tier.bits,
            up_bits=wire.up_bits if tier.up_bits is None else tier.up_bits,
            down_bits=wire.down_bits if tier.down_bits is None else tier.down_bits,
            settings=tier.settings,
        )


class Federation:
    """A run file's six devices and their shared model, trained round by round."""

    def __init__(self, runfile: RunFile, seed: int, folder: Path) -> None:
        self.runfile, self.seed, self.folder = runfile, seed, folder
        self.algorithm: Algorithm = registry.find(runfile.run.algorithm).configure(runfile.settings)
        tiers = {tier.name: tier for tier in runfile.tiers}
        self.devices = [
            Device(index, name, tiers[tier], runfile, seed)
            for index, (name, tier) in enumerate(CLIENTS.items())
        ]
        self.broadcast: Path | None = None
        self.digest = b""
        self.variant = runfile.run.global_variant or next(iter(Digits().variants()))
        self.table = self.devices[0].executor.table(self.variant)
        if self.algorithm.has_global_model:
            self.broadcast = folder / "0.payload"
            tensors = initial_tensors(Digits().variants()[self.variant], self.variant, seed)
            dense = [(row.name, encode_dense(tensors[row.name])) for row in self.table.rows]
            self.digest = write_payload(self.broadcast, dense, self.table.tensor_table).sha256

    def train(self) -> Accuracies:
        """Run all rounds; return what the clients end with."""
        for round_ in range(1, self.runfile.run.rounds + 1):
            updates = [self._task(device, TaskKind.TRAIN, round_) for device in self.devices]
            if self.broadcast is not None:
                self._fold(self.broadcast, [u for u, _ in updates], round_)
        last = self.runfile.run.rounds
        finished = [self._task(device, TaskKind.FINISH, last)[1] for device in self.devices]
        return {
            device.member.name: 100 * metrics["accuracy"]
            for device, metrics in zip(self.devices, finished, strict=True)
        }

    def _task(
        self, device: Device, kind: TaskKind, round_: int
    ) -> tuple[Contribution, Mapping[str, float]]:
        """Do one task; return the update, which only training has, and the metrics."""
        rounds, member = self.runfile.run.rounds, device.member
        plan = self.algorithm.plan(member, Moment(round=round_, rounds=rounds, seed=self.seed))
        task = TaskSpec(
            task_id=f"{member.name}-{kind.value}-{round_}",
            kind=kind,
            run_id=self.runfile.run.name,
            run_name=self.runfile.run.name,
            round=round_,
            rounds=rounds,
            algorithm=self.algorithm.name,
            workload=self.runfile.workload.name,
            plan=plan,
            run_seed=self.seed,
            client=member.name,
            payload_sha256=self.digest,
            base_version=device.store.version,
            fresh_if_lost=False,
            global_variant=self.variant if self.algorithm.has_global_model else "",
        )
        update = self.folder / f"{member.name}.update"
        outcome = device.executor.run(
            task,
            personal=device.store,
            broadcast=self.broadcast,
            update=update,
            model=self.folder / f"{member.name}.model",
        )
        return Contribution(member.name, update, plan.sends_delta, 1.0), outcome.metrics

    def _fold(self, state: Path, updates: Sequence[Contribution], round_: int) -> None:
        out = self.folder / f"{round_}.payload"
        self.digest = fold(
            table=self.table,
            state=state,
            contributions=updates,
            reducer=self.algorithm.reducer,
            finish_tile=self.algorithm.finish_tile,
            out=out,
        ).sha256
        state.unlink()
        self.broadcast = out


def read(algorithm: str, overrides: Sequence[str] = ()) -> RunFile:
    """Return an algorithm's run file with `ALGORITHM.[TIER.]SETTING=VALUE` laid over it."""
    path = EXAMPLES / RUN_FILES[algorithm]
    runfile = parse(path.read_text(), path.name)
    settings = dict(runfile.settings)
    of_tiers = {tier.name: dict(tier.settings) for tier in runfile.tiers}
    for override in overrides:
        target, _, text = override.partition("=")
        of, *tier, name = target.split(".")
        if of not in RUN_FILES or (of == algorithm and tier and tier[0] not in of_tiers):
            raise SystemExit(f"--set {override}: no such algorithm or tier")
        if of == algorithm:
            (of_tiers[tier[0]] if tier else settings)[name] = value_of(text)
    tiers = [{**tier.model_dump(), "settings": of_tiers[tier.name]} for tier in runfile.tiers]
    return RunFile.model_validate({**runfile.model_dump(), "settings": settings, "tiers": tiers})


def value_of(text: str) -> Scalar:
    """Return a number, true or false as such and anything else as text."""
    try:
        value: Scalar = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value


def train(runfile: RunFile, seed: int) -> Accuracies:
    """Return what each client of a run ends with."""
    with tempfile.TemporaryDirectory(prefix="motley-tuning-") as folder:
        return Federation(runfile, seed, Path(folder)).train()


def worst(accuracies: Accuracies) -> str:
    """Return the client that ends lowest, as text."""
    name = min(accuracies, key=lambda client: accuracies[client])
    return f"{name} {accuracies[name]:.1f}"


def summarise(name: str, results: Sequence[Accuracies]) -> None:
    """Print an algorithm's mean over seeds and its lowest client."""
    mean = statistics.fmean(statistics.fmean(one.values()) for one in results)
    lowest = min(min(one.values()) for one in results)
    low = sum(accuracy < 85 for one in results for accuracy in one.values())
    print(f"{name:5}  mean {mean:.2f}  lowest client {lowest:.1f}  below 85 %: {low}", flush=True)


def compare(seeds: Sequence[int], results: Mapping[str, Sequence[Accuracies]], name: str) -> None:
    """Report the gains of QuPeD over training alone, seed by seed and in the mean."""
    gains, rows = [], []
    for seed, together, alone in zip(seeds, results["quped"], results["local"], strict=True):
        of_quped, of_local = statistics.fmean(together.values()), statistics.fmean(alone.values())
        gains.append(of_quped - of_local)
        detail = f"QuPeD {of_quped:.2f} (lowest: {worst(together)})"
        detail += f", alone {of_local:.2f} (lowest: {worst(alone)})"
        rows.append(Ratio(f"gain, seed {seed}", gains[-1], detail=detail))
    mean, error = statistics.fmean(gains), statistics.stdev(gains) / len(gains) ** 0.5
    rows += [
        Ratio("mean gain", mean, detail=f"standard error {error:.2f}"),
        Ratio("mean gain in standard errors", mean / error, 2.0, at_least=True),
        Ratio("smallest gain of a seed", min(gains), -1.0, at_least=True),
    ]
    report(
        name,
        "accuracy of QuPeD's personal models less that of training alone, in points, mean over "
        f"the demo's six clients: {', '.join(RUN_FILES.values())}",
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", choices=RUN_FILES, help="one algorithm, without a comparison")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="ALGORITHM.[TIER.]SETTING=VALUE",
        help="settings laid over the run files', for tuning",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, list[Accuracies]] = {}
    for name in [options.only] if options.only else RUN_FILES:
        runfile = read(name, options.set)
        print(f"{name}: {dict(runfile.settings)}", flush=True)
        results[name] = []
        for seed in options.seeds:
            results[name].append(train(runfile, seed))
            each = "  ".join(f"{client} {a:.1f}" for client, a in results[name][-1].items())
            mean = statistics.fmean(results[name][-1].values())
            print(f"seed {seed}  {name:5}  {mean:.2f}  ({each})", flush=True)
        summarise(name, results[name])
    if len(results) == len(RUN_FILES) and len(options.seeds) > 1:
        compare(options.seeds, results, "demo_tuning_trial" if options.set else "demo_tuning")


if __name__ == "__main__":
    main()
