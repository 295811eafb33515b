"""Bytes of FedP3's rounds next to FedAvg's, on the paper's network for CIFAR-10.

    python benchmarks/fedp3_bytes.py

Four clients, one in each group. A download is what the server encodes for a round, an upload what a
client makes of a model of that size: whole payloads, masks, scales and manifests included.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from report import Ratio, report

from fedserver.rounds.context import ModelInfo, RunContext
from fedserver.rounds.jobs import Form, OpenJob
from fedserver.storage.payloads import PayloadStore
from motley.algorithms import registry
from motley.algorithms.base import Broadcast, Member, Moment
from motley.execution.encoding import encode_update
from motley.models.units import UnitTable, fresh_tensors, variant_table
from motley.plan import Plan
from motley.runfile import parse
from motley.task import TaskKind, TaskSpec
from motley.wire import PayloadReader, encode_dense, write_payload
from motley.workloads.variants import image_variants

CLIENTS = 4
RUN = """
[run]
name = "bytes"
algorithm = "{algorithm}"
rounds = 1
[workload]
name = "cifar10"
[clients]
expected = 4
[wire]
up_bits = {bits}
down_bits = {bits}
[settings]
{settings}
"""


@dataclass(frozen=True)
class Bytes:
    """Of all clients together in one round."""

    up: int
    down: int


class Rig:
    """The engine's encoding of one network, with any settings."""

    def __init__(self, root: Path) -> None:
        self.variant = image_variants(channels=3, classes=10, side=32, hidden=(1,))["cnn1-1024"]
        self.table: UnitTable = variant_table(self.variant)
        self.root, self.payloads = root, PayloadStore(root)
        path = root / "initial"
        encoded = [(n, encode_dense(v)) for n, v in fresh_tensors(self.variant, 0).items()]
        self.state = write_payload(path, encoded, self.table.tensor_table).sha256.hex()
        self.payloads.adopt(path, self.state)

    def measure(self, algorithm: str, settings: str = "", bits: int = 32) -> Bytes:
        """Encode a round of four clients."""
        runfile = parse(RUN.format(algorithm=algorithm, settings=settings, bits=bits))
        model = ModelInfo(
            workload_version=1,
            default_variant="m",
            global_variant="m",
            tables={"m": self.table},
        )
        method = registry.find(algorithm).configure(runfile.settings)
        context = RunContext(id="b", name="b", runfile=runfile, algorithm=method, model=model)
        moment = Moment(round=1, rounds=1, seed=0)
        plans = [method.plan(self._member(index, bits), moment) for index in range(CLIENTS)]
        job = OpenJob(
            context=context,
            round_id=0,
            round=1,
            state=self.state,
            forms=frozenset(Form.of(plan) for plan in plans),
        )
        digests = job.run(self.payloads)
        paths = [self.payloads.path(digests[Form.of(plan)]) for plan in plans]
        up = sum(
            self._upload(plan, path, f"c{index}")
            for index, (plan, path) in enumerate(zip(plans, paths, strict=True))
        )
        return Bytes(up, sum(path.stat().st_size for path in paths))

    def _member(self, index: int, bits: int) -> Member:
        return Member(
            name=f"c{index}",
            tier="all",
            variant="m",
            units=self.table,
            up_bits=bits,
            down_bits=bits,
            index=index,
            clients=CLIENTS,
        )

    def _upload(self, plan: Plan, broadcast: Path, client: str) -> int:
        """Encode what a client would send that ended up with other values."""
        task = TaskSpec(
            task_id="t",
            kind=TaskKind.TRAIN,
            run_id="b",
            run_name="b",
            round=1,
            rounds=1,
            algorithm="fedp3",
            workload="cifar10",
            plan=plan,
            run_seed=0,
            client=client,
            global_variant="m",
        )
        trained = fresh_tensors(self.variant, 1)
        sent = {
            name: values
            for name, values in trained.items()
            if not plan.upload or self.table[name].unit in plan.upload
        }
        with PayloadReader(broadcast, self.table.tensor_table) as reader:
            received = Broadcast(dict(reader.items()))
            encoded = encode_update(task, self.table, sent, received)
            path = self.root / "update"
            return write_payload(path, encoded, self.table.tensor_table).size


def main() -> None:
    """Print the table and write `benchmarks/out/fedp3_bytes.json`."""
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder))
        whole = rig.measure("fedavg")
        ratios = []
        for layers, target in (("lowerb", 0.26), ("opu2", 0.51), ("opu3", 0.76)):
            for keep in (1.0, 0.9, 0.7, 0.5):
                found = rig.measure("fedp3", f'layers = "{layers}"\nkeep = {keep}')
                ratios += _pair(f"{layers} keep {keep}", found, whole, target)
        for bits in (8, 4, 2):
            found = rig.measure("fedp3", 'layers = "opu2"\nkeep = 0.9', bits)
            ratios += _pair(f"opu2 keep 0.9, {bits} bits", found, whole, 0.51 * bits / 32)
        for share in (0.5, 0.1):
            found = rig.measure("fedp3", f'layers = "opu2"\nkeep = 0.9\nupload_keep = {share}')
            ratios += _pair(
                f"opu2 keep 0.9, upload keep {share}", found, whole, 0.51 * share + 0.005
            )
        report(
            "fedp3_bytes",
            "bytes of a round over FedAvg's in float32, four clients of four groups, the network "
            f"of {rig.table.parameters_count:,} parameters for CIFAR-10",
            ratios,
        )


def _pair(name: str, found: Bytes, whole: Bytes, target: float) -> list[Ratio]:
    millions = f"{found.up / CLIENTS / 1e6:.3f} of {whole.up / CLIENTS / 1e6:.3f} MB a client"
    down = f"{found.down / CLIENTS / 1e6:.3f} of {whole.down / CLIENTS / 1e6:.3f} MB a client"
    return [
        Ratio(f"{name}, up", found.up / whole.up, target, detail=millions),
        Ratio(f"{name}, down", found.down / whole.down, detail=down),
    ]


if __name__ == "__main__":
    main()
