"""What FedMPQ costs: a local step against one width for all layers, and bytes at every width.

    python benchmarks/fedmpq_step.py

Both steps are integer steps of the same network on the same batch, in turns on one thread: the
reference holds every layer at 4 bits, without lasso; FedMPQ has the widths of an allocation for an
average of 4 bits, and the group lasso. The time is the processor's. Pruning and packing, once a
task, are spread over the task's steps. Bytes are those of written payloads, frames included.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from fedmpq_workload import SmallNet
from report import Ratio, report
from torch.nn import functional

from motley.algorithms.allocation import allocate, average_bits
from motley.algorithms.fedmpq import FedMPQSettings
from motley.models.rectifier import set_activation_bits
from motley.models.resnet import resnet
from motley.models.units import UnitTable, fresh_tensors, load_tensors, variant_table
from motley.seeding import derive
from motley.training.integer import IntegerLayer, IntegerModel, lasso_weights, replace_weight
from motley.wire import encode_dense, iter_frames, quantize_planes, write_payload
from motley.wire.stubs import common_pb2, federation_pb2
from motley.workload import Variant
from motley.workloads.variants import RESNET_SHORTCUTS

RESNET = Variant(partial(resnet, 20, channels=3, classes=10), full_precision=RESNET_SHORTCUTS)
SMALL = Variant(SmallNet)
CASES = {"ResNet-20, 32x32": (RESNET, (3, 32, 32)), "small net, 28x28": (SMALL, (1, 28, 28))}
SETTINGS = FedMPQSettings()
RATE = 0.05
AVERAGE = 4
KB = 1000


def integer_model(variant: Variant, widths: Mapping[str, int]) -> IntegerModel:
    """Return a network with each layer at its width."""
    module = variant.build()
    tensors = fresh_tensors(variant, derive(0, "bench"))
    load_tensors(module, tensors)
    layers: dict[str, IntegerLayer] = {}
    for unit, bits in widths.items():
        name = f"{unit}.weight"
        encoded = quantize_planes(tensors[name], bits)
        generator = torch.Generator().manual_seed(len(layers))
        layers[name] = IntegerLayer(
            encoded.codes(),  # type: ignore[arg-type]
            float(encoded.scale[1]),
            bits,
            SETTINGS.rules(),
            generator,
        )
        replace_weight(module, name, layers[name])
    set_activation_bits(module, SETTINGS.activation_bits)
    return IntegerModel(module, layers)


class Step:
    """A local step of one model on one batch."""

    def __init__(self, case: str, widths: Mapping[str, int], lasso: float, batch: int) -> None:
        variant, shape = CASES[case]
        self.model = integer_model(variant, widths)
        self._lasso = lasso_weights(self.model.layers, lasso)
        generator = torch.Generator().manual_seed(1)
        self._inputs = torch.rand(batch, *shape, generator=generator)
        self._targets = torch.randint(10, (batch,), generator=generator)

    def __call__(self) -> None:
        loss = functional.cross_entropy(self.model.module(self._inputs), self._targets)
        self.model.step(loss, RATE, SETTINGS.momentum, self._lasso)

    def moved(self) -> float:
        """Return the share of integers that ever moved."""
        layers = self.model.layers.values()
        return sum(layer.moved_count() for layer in layers) / sum(
            layer.codes.numel() for layer in layers
        )

    def finish(self) -> None:
        """Do what ends a task: packing, and with the lasso pruning before it."""
        for layer in self.model.layers.values():
            if self._lasso:
                layer.prune(SETTINGS.prune_below)
            layer.encode()


def seconds(run: Callable[[], None]) -> float:
    """Return the processor's time of a call."""
    began = time.process_time()
    run()
    return time.process_time() - began


def overhead(case: str, batch: int, repeats: int, local_steps: int) -> Ratio:
    """Time both steps in turns; the first fifth only warms."""
    sizes = variant_table(CASES[case][0], ends=True).quantized_sizes
    start = dict.fromkeys(sizes, AVERAGE)
    fixed = Step(case, start, 0.0, batch)
    widths = allocate(dict.fromkeys(sizes, 6), dict.fromkeys(sizes, 1), sizes, AVERAGE)
    mixed = Step(case, widths, SETTINGS.lasso, batch)
    steps = {"fixed": fixed, "mixed": mixed}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + repeats // 5):
        for name, step in steps.items():
            found = seconds(step)
            if repeat >= repeats // 5:
                times[name].append(found)
    each = {
        name: statistics.median(times[name]) + seconds(step.finish) / local_steps
        for name, step in steps.items()
    }
    return Ratio(
        f"step of {case}, {average_bits(widths, sizes):.2f} bits",
        each["mixed"] / each["fixed"],
        1.10,
        detail=f"{each['mixed'] * 1e3:.1f} ms over {each['fixed'] * 1e3:.1f} ms",
    )


def movement(sizes: Mapping[str, int], batch: int, steps: int) -> list[Ratio]:
    """Return the share of integers that moved in a task, by width."""
    ratios = []
    for bits in (1, 2, 4, 8):
        step = Step("ResNet-20, 32x32", dict.fromkeys(sizes, bits), 0.0, batch)
        for _ in range(steps):
            step()
        target = 0.01 if bits == 2 else None
        detail = f"of {sum(sizes.values()):,} integers in {steps} steps"
        ratios.append(Ratio(f"moved at {bits} bits", step.moved(), target, True, detail))
    return ratios


def payload_bytes(units: UnitTable, widths: Mapping[str, int], tail: str, folder: Path) -> int:
    """Return the bytes of an update as frames carry them."""
    tensors = fresh_tensors(RESNET, 0)
    encoded = []
    for row in units:
        values = tensors[row.name]
        half = tail == "float16" and row.dtype == "float32"
        planes = widths[row.unit] if row.quantized else 0
        encoded.append(
            (
                row.name,
                quantize_planes(values, planes)
                if planes
                else encode_dense(values, "float16" if half else None),
            )
        )
    path = folder / "update"
    write_payload(path, encoded, units.tensor_table)
    frames = [
        federation_pb2.UploadMessage(
            frame=common_pb2.Frame(offset=f.offset, data=f.data, crc32=f.crc32)
        )
        for f in iter_frames(path)
    ]
    return sum(frame.ByteSize() for frame in frames)


def sizes_by_width(units: UnitTable, sizes: Mapping[str, int], folder: Path) -> list[Ratio]:
    """Compare measured bytes with the formula at every width, and the average of 2 bits."""
    weights = sum(sizes.values())
    tail = sum(row.nbytes for row in units if not row.quantized)
    manifest = 56 + 16 * len(units)
    ratios = []
    for bits in range(1, 9):
        packed = weights * (bits + 1) / 8
        formula = sum(4 + math.ceil(n / 8) * (bits + 1) for n in sizes.values()) + tail + manifest
        found = payload_bytes(units, dict.fromkeys(sizes, bits), "", folder)
        detail = (
            f"nominal {weights * bits / 8 / KB:.1f}, with sign {packed / KB:.1f}, "
            f"with fp32 tail {(packed + tail) / KB:.1f}, on the wire {found / KB:.1f} KB"
        )
        name = f"bytes at {bits} bits over the formula"
        ratios.append(Ratio(name, found / formula, 1.02, detail=detail))
    widths = allocate(dict.fromkeys(sizes, 6), dict.fromkeys(sizes, 1), sizes, 2)
    dense = sum(row.nbytes for row in units)
    most = (123 * KB * 1.02 + manifest) / dense
    for kind, title in (("", "fp32"), ("float16", "fp16")):
        found = payload_bytes(units, widths, kind, folder)
        detail = f"{found / KB:.1f} KB, average {average_bits(widths, sizes):.3f} bits"
        name = f"2-bit upload over {dense / KB:.0f} KB, {title} tail"
        ratios.append(Ratio(name, found / dense, most, detail=detail))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--local-steps", type=int, default=50, help="steps a task")
    options = parser.parse_args()
    torch.set_num_threads(1)
    units = variant_table(RESNET, ends=True)
    sizes = units.quantized_sizes
    ratios = [overhead(case, options.batch, options.repeats, options.local_steps) for case in CASES]
    ratios += movement(sizes, options.batch, 20)
    with tempfile.TemporaryDirectory() as folder:
        ratios += sizes_by_width(units, sizes, Path(folder))
    report(
        "fedmpq_step",
        f"batch {options.batch}, one thread: processor time of a FedMPQ step over that "
        f"of a step with {AVERAGE} bits in every layer, medians in turns, task ends spread over "
        f"{options.local_steps} steps; bytes of payloads of a ResNet-20 in frames",
        ratios,
    )


if __name__ == "__main__":
    main()
