"""Packing, unpacking and folding in, against numpy's weighted sum over the same weights.

    python benchmarks/core.py

One thread, warm buffers, all cases interleaved in one run. The reference is the blockwise
`acc += w * x` with a preallocated temporary over the float32 weights: what a server does with
an update that was never packed. A ratio of 1.0 means that packing takes as long as that.
Folding in is there twice where numba is installed: numpy alone, and with compiled loops.
Then 8 and 64 updates of a model of 100 MB are folded, each time in a process of its own
(`core_fold.py`): seconds for each update, and the peak memory over a model.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from core_fold import measured
from report import Ratio, report

from motley.wire import TILE, EncodedTensor, compiled, encode_offset, pack, packed_size, unpack

WEIGHT = np.float32(0.3)
TARGETS = (1, 2, 4, 8)
FOLD_SPEED = {True: 0.75, False: 0.35}
"""Least speed of dequantizing and adding, over the reference: at widths of `TARGETS`, at others."""
COMPILED = "fold in, compiled"
FOLDED, MODEL_MB = (8, 64), 100.0
Cases = dict[str, Callable[[], object]]


def weighted_sum(acc: np.ndarray, values: np.ndarray) -> Callable[[], None]:
    scratch = np.empty(TILE, np.float32)

    def run() -> None:
        for start in range(0, values.size, TILE):
            part = acc[start : start + TILE]
            product = scratch[: part.size]
            np.multiply(values[start : start + TILE], WEIGHT, out=product)
            np.add(part, product, out=part)

    return run


def fold_in(
    acc: np.ndarray, tensor: EncodedTensor, *, with_loops: bool = False
) -> Callable[[], None]:
    def run() -> None:
        compiled.usage.pays_from = 0 if with_loops else math.inf
        for start in range(0, tensor.size, TILE):
            tensor.add_slice(start, WEIGHT, acc[start : start + TILE])

    return run


def cases(n: int, rng: np.random.Generator) -> Cases:
    acc, values = np.zeros(n, np.float32), rng.standard_normal(n, dtype=np.float32)
    codes, unpacked = rng.integers(0, 256, n, dtype=np.uint8), np.empty(n, np.uint8)
    made: Cases = {"reference": weighted_sum(acc, values)}
    for bits in range(1, 9):
        own = codes >> np.uint8(8 - bits)
        packed = pack(own, bits)
        target = np.empty(packed_size(n, bits), np.uint8)
        made[f"pack {bits}"] = lambda c=own, b=bits, o=target: pack(c, b, out=o)
        made[f"unpack {bits}"] = lambda p=packed, b=bits: unpack(p, b, n, out=unpacked)
        tensor = encode_offset(own, -1.0, 0.01, bits)
        made[f"fold in {bits}"] = fold_in(acc, tensor)
        if compiled.load() is not None:
            made[f"{COMPILED} {bits}"] = fold_in(acc, tensor, with_loops=True)
    return made


def measure(made: Cases, repeats: int) -> dict[str, list[float]]:
    """Return seconds by case; every repeat runs all cases, the first repeat only warms."""
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for repeat in range(repeats + 1):
        for name, run in made.items():
            began = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def folds() -> Iterator[Ratio]:
    """Say what folding many updates takes."""
    kinds = {"of 32 bits": (32, False), "of 4 bits": (4, False)}
    if compiled.load() is not None:
        kinds["of 4 bits, compiled"] = (4, True)
    for kind, (bits, with_loops) in kinds.items():
        peaks = {}
        for updates in FOLDED:
            seconds, peaks[updates] = measured(updates, MODEL_MB, bits, with_loops)
            yield Ratio(
                f"fold {updates} updates {kind}: peak over a model",
                peaks[updates] / (MODEL_MB * 1e6),
                4.0,
                detail=f"{seconds:.2f} s, {seconds / updates * 1e3:.0f} ms an update; "
                f"the process takes about {190 if with_loops else 60} MB before",
            )
        few, many = (peaks[updates] for updates in FOLDED)
        yield Ratio(f"fold, {kind}: peak of 64 updates over that of 8", many / few, 1.1)


def bound(work: str, bits: int) -> float | None:
    """Return the longest time over the reference that is wanted."""
    if work == "fold in":
        return round(1 / FOLD_SPEED[bits in TARGETS], 3)
    return 1.0 if work == COMPILED or bits in TARGETS else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=25_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-fold", action="store_true", help="packing alone")
    options = parser.parse_args()
    made = cases(options.weights, np.random.default_rng(0))
    seconds = measure(made, options.repeats)
    reference = statistics.median(seconds.pop("reference"))
    ratios = []
    for name, times in sorted(seconds.items(), key=lambda item: item[0].rsplit(" ", 1)):
        work, bits = name.rsplit(" ", 1)
        detail = f"{min(times) * 1e3:.1f} - {max(times) * 1e3:.1f} ms"
        ratios.append(
            Ratio(
                f"{work} {bits} bits",
                statistics.median(times) / reference,
                bound(work, int(bits)),
                detail=detail,
            )
        )
    if not options.no_fold:
        ratios += folds()
    report(
        "core",
        f"time over numpy's blockwise acc += w * x ({reference * 1e3:.1f} ms) on "
        f"{options.weights:,} float32 weights; one thread, warm buffers, "
        f"median of {options.repeats}",
        ratios,
    )


if __name__ == "__main__":
    main()
