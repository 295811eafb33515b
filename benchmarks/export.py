"""What exported models weigh, and how fast they run: packed and ONNX against torch in fp32.

    python benchmarks/export.py

Weights are freshly drawn and quantized by QuPeD's first centres: neither size nor time depends on
what they are. Sizes are those of written files over the bytes of all tensors in fp32. Times are
medians of single calls on one thread, all of a network's models in turns and random order; the
time is the processor's, so that others on the machine count less. The packed file runs in torch,
decoded.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from report import Ratio, report

from motley.export.about import About
from motley.export.convert import Format, Ground, export
from motley.export.halves import halved
from motley.export.onnx_file import session
from motley.export.packed import PackedModel, read_packed
from motley.export.predictions import Array, Run, build, runner
from motley.models.units import fresh_tensors, variant_table
from motley.quantize.rules import CentreRules
from motley.training.personal import codes_and_centres, quantized_state
from motley.wire import encode_codebook, encode_dense, quantize_planes
from motley.workload import Split, Workload
from motley.workloads.digits import Digits
from motley.workloads.images import Cifar10

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "own_workload"))
from tumours import Tumours

CASES: dict[str, tuple[type[Workload], str, str, tuple[int, ...]]] = {
    "cnn1, 8x8": (Digits, "digits", "cnn1", (1, 8, 8)),
    "cnn1-64, 32x32": (Cifar10, "cifar10", "cnn1-64", (3, 32, 32)),
    "resnet20, 32x32": (Cifar10, "cifar10", "resnet20", (3, 32, 32)),
}
TINY: dict[str, tuple[type[Workload], str, str, tuple[int, ...]]] = {
    "the example of an own workload": (Tumours, "tumours", "small", (30,)),
}
"""Too small for times to say anything; the graph is what weighs here."""
BITS = (1, 2, 4, 32)
PACKED_BITS = 2
"""The one width whose packed file is timed: decoded, all are the same network in torch."""
PLANES = (3, 7, 8)
"""With their signs they take int4, int8 and int16."""
BATCHES = (1, 64)
SAMPLES = 256
KB = 1000


def model_of(case: str, bits: int) -> PackedModel:
    """Return a network whose inner layers have 2^bits centres; 32: full precision."""
    kind, workload, name, _ = {**CASES, **TINY}[case]
    variant = kind().variants()[name]
    values = fresh_tensors(variant, 0)
    tensors = {key: encode_dense(array) for key, array in values.items()}
    if bits < 32:
        names = [row.name for row in variant_table(variant) if row.quantized]
        state = quantized_state(values, dict.fromkeys(names, 2**bits), CentreRules())
        for key, (codes, centres) in codes_and_centres(state).items():
            tensors[key] = encode_codebook(codes, centres.astype(np.float32))
    about = About(
        workload=workload,
        variant=name,
        run="2294253f",
        name=f"{workload}-quped",
        algorithm="quped",
        rounds=100,
        client="jetson-1",
    )
    return PackedModel.of(about, tensors)


def seconds(run: Callable[[Array], object], inputs: Array) -> float:
    began = time.process_time()
    run(inputs)
    return time.process_time() - began


def latencies(runs: dict[str, Run], inputs: Array, repeats: int) -> dict[str, float]:
    """Return each model's median time of a call in seconds; a fifth more calls only warm.

    In another order each time: what runs behind a model in torch finds the caches cold.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + repeats // 5):
        order = random.Random(repeat).sample(sorted(runs), len(runs))
        for name in order:
            found = seconds(runs[name], inputs)
            if repeat >= repeats // 5:
                times[name].append(found)
    return {name: statistics.median(found) for name, found in times.items()}


def measure(case: str, folder: Path, repeats: int) -> Iterator[Ratio]:
    """Export one network at every bit-width, weigh the files and time them."""
    kind, _, _, shape = CASES[case]
    workload, rng = kind(), np.random.default_rng(0)
    inputs = rng.normal(size=(SAMPLES, *shape)).astype(np.float32)
    ground = Ground(workload, Split(inputs, np.zeros(SAMPLES, np.int64)))
    full = model_of(case, 32)
    runs: dict[str, Run] = {"torch": runner(ground.module(full))}
    for bits in BITS:
        model = full if bits == 32 else model_of(case, bits)
        what = f"{case}, {bits} bits" if bits < 32 else f"{case}, full precision"
        packed, graph = folder / f"{bits}.motley", folder / f"{bits}.onnx"
        size = export(model, packed, Format.PACKED).size
        done = export(model, graph, Format.ONNX, ground)
        assert done.agreement is not None
        same = f"{SAMPLES - done.agreement.changed} of {SAMPLES} predictions are torch's"
        dense = model.dense_bytes
        for form, found, note in (("packed", size, ""), ("onnx", done.size, f"; {same}")):
            detail = f"{found / KB:.1f} of {dense / KB:.1f} KB{note}"
            yield Ratio(f"bytes of {what}, {form}", found / dense, detail=detail)
        if bits == PACKED_BITS:
            again = read_packed(packed)
            runs[f"packed, {bits}"] = runner(build(workload, again.about, again.values()))
        runs[f"onnx, {bits}"] = session(graph, threads=1)
    for batch in BATCHES:
        times = latencies(runs, inputs[:batch], repeats)
        base = times.pop("torch")
        for name, found in times.items():
            form, bits_text = name.split(", ")
            width = "full precision" if bits_text == "32" else f"{bits_text} bits"
            detail = f"{found * 1e3:.3f} ms over {base * 1e3:.3f} ms"
            title = f"time of {case}, {width}, {form}, batch {batch}"
            yield Ratio(title, found / base, detail=detail)


def dequantized(case: str, folder: Path, repeats: int) -> Iterator[Ratio]:
    """Time FedMPQ's integers dequantized in each call against once, when the file is opened."""
    kind, _, _, shape = CASES[case]
    full, rng = model_of(case, 32), np.random.default_rng(0)
    inputs = rng.normal(size=(SAMPLES, *shape)).astype(np.float32)
    ground = Ground(kind(), Split(inputs, np.zeros(SAMPLES, np.int64)))
    for planes in PLANES:
        tensors = {
            name: quantize_planes(values, planes) if values.ndim >= 2 else full.tensors[name]
            for name, values in full.values().items()
        }
        graph = folder / f"planes{planes}.onnx"
        size = export(PackedModel.of(full.about, tensors), graph, Format.ONNX, ground).size
        runs = {
            word: session(graph, threads=1, expand_once=once)
            for word, once in (("each", False), ("once", True))
        }
        times = latencies(runs, inputs[:1], repeats)
        detail = (
            f"{times['each'] * 1e3:.3f} ms over {times['once'] * 1e3:.3f} ms; {size / KB:.1f} KB"
        )
        title = f"time of {case}, {planes} planes, dequantized in each call over once, batch 1"
        yield Ratio(title, times["each"] / times["once"], detail=detail)


def graphs(case: str, folder: Path) -> Iterator[Ratio]:
    """Tell what of an ONNX file is no weight: operators, names, the description."""
    kind, _, _, shape = {**CASES, **TINY}[case]
    ground = Ground(kind(), Split(np.zeros((2, *shape), np.float32), np.zeros(2, np.int64)))
    for bits in BITS:
        model, path = model_of(case, bits), folder / "graph.onnx"
        size = export(model, path, Format.ONNX, ground).size
        weights = sum(len(w.raw_data) for w in onnx.load(path).graph.initializer)
        dense = model.dense_bytes
        detail = f"{size} B: {weights} of weights, {size - weights} of graph; fp32 {dense} B"
        yield Ratio(f"graph over fp32 weights of {case}, {bits} bits", (size - weights) / dense,
                    detail=detail)  # fmt: skip


def demo_file(folder: Path) -> Ratio:
    """Weigh the demo's 2-bit model with its ends in fp16, against the issue's bound."""
    model = model_of("cnn1, 8x8", 2)
    tensors = halved(model.tensors, variant_table(Digits().variants()["cnn1"]))
    assert tensors is not None
    half = PackedModel.of(model.about, tensors)
    size = export(half, folder / "half.motley", Format.PACKED).size
    detail = f"{size / KB:.2f} of {half.dense_bytes / KB:.2f} KB"
    return Ratio(
        "bytes of cnn1, 8x8, 2 bits, packed, ends in fp16",
        size / half.dense_bytes,
        0.1,
        detail=detail,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        ratios.append(demo_file(Path(folder)))
        for case in (*TINY, *CASES):
            ratios += graphs(case, Path(folder))
        for case in CASES:
            ratios += measure(case, Path(folder), options.repeats)
        ratios += dequantized("cnn1-64, 32x32", Path(folder), options.repeats)
    report(
        "export",
        "bytes of a file over the model's tensors in fp32; processor time of a call over the same "
        f"network in torch in fp32, medians of {options.repeats} in turns, one thread, files open",
        ratios,
    )


if __name__ == "__main__":
    main()
