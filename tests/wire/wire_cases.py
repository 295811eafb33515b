"""Payloads that tests share. Values come from arithmetic, so that no library can change them.

    python tests/wire/wire_cases.py

writes the golden files anew. Do that only together with a new version of the wire format.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.testing as npt

from motley.wire import (
    BitMask,
    EncodedTensor,
    GapMask,
    Mask,
    PrefixMask,
    SeededMask,
    TensorRow,
    TensorTable,
    encode_codebook,
    encode_dense,
    encode_masked,
    encode_offset,
    encode_planes,
    quantize_lattice,
    quantize_uniform,
    write_payload,
)

GOLDEN = Path(__file__).parent / "golden"
Named = list[tuple[str, EncodedTensor]]

LENET = TensorTable(
    TensorRow(f"{layer}.{part}", shape[: None if part == "weight" else 1], "float32")
    for layer, shape in (
        ("conv1", (6, 1, 5, 5)),
        ("conv2", (16, 6, 5, 5)),
        ("fc1", (120, 256)),
        ("fc2", (84, 120)),
        ("fc3", (10, 84)),
    )
    for part in ("weight", "bias")
)


def ramp(n: int, modulus: int) -> np.ndarray:
    return np.arange(n, dtype=np.int64) * 7919 % modulus


def floats(shape: tuple[int, ...]) -> np.ndarray:
    n = int(np.prod(shape, dtype=np.int64))
    return ((ramp(n, 1009) - 504) / 256).astype(np.float32).reshape(shape)


def dense_tensors() -> Named:
    x = floats((3, 5))
    named = [(f"as {kind}", encode_dense(x, kind)) for kind in ("float32", "float16", "bfloat16")]
    for dtype in ("float64", "int8", "int16", "int32", "int64", "uint8", "bool"):
        named.append((dtype, encode_dense(ramp(11, 2 if dtype == "bool" else 101).astype(dtype))))
    special = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    named += [(f"special {kind}", encode_dense(special, kind)) for kind in ("float16", "bfloat16")]
    return [*named, ("0-d", encode_dense(np.array(7, np.int64))), ("empty", encode_dense(x[:0]))]


def offset_tensors() -> Named:
    named = []
    for bits in range(1, 9):
        codes = ramp(37, 1 << bits).astype(np.uint8)
        named.append((f"offset {bits}", encode_offset(codes, -0.5, 0.1, bits)))
        named.append((f"nearest {bits}", quantize_uniform(floats((4, 9)), bits)))
    return [*named, ("0-d", encode_offset(np.array(1, np.uint8), 0.0, 2.0, 1))]


def planes_tensors() -> Named:
    named = []
    for bits in range(1, 9):
        top = (1 << bits) - 1
        codes = (ramp(37, 2 * top + 1) - top).astype(np.int16)
        named.append((f"planes {bits}", encode_planes(codes, 0.25, bits)))
        named.append((f"cut {bits}", encode_planes(codes, 0.25, bits, top & 0b10110101)))
    return named


def codebook_tensors() -> Named:
    named = []
    for m in (1, 2, 3, 4, 5, 16, 17, 100, 255, 256):
        centres = floats((m,))
        named.append((f"centres {m}", encode_codebook(ramp(37, m).astype(np.uint8), centres)))
    return [*named, ("wide", encode_codebook(np.zeros(9, np.uint8), floats((2,)), bits=8))]


def lattice_tensors() -> Named:
    named = []
    for bits in range(1, 9):
        for dimensions, reach in ((1, 0.0), (2, 0.0), (2, 1.5)):
            tensor = quantize_lattice(floats((37,)), bits, dimensions, 2**64 - bits, reach)
            named.append((f"lattice {bits} {dimensions} {reach}", tensor))
    zeros = quantize_lattice(np.zeros((2, 3), np.float32), 3, 2, 7)
    return [*named, ("zeros", zeros), ("0-d", quantize_lattice(floats(()), 4, 2, 1))]


def masked_inner(kept: int) -> Named:
    """Values of `kept` elements in every encoding that can stand under a mask."""
    x, codes = floats((kept,)), ramp(kept, 16).astype(np.uint8)
    return [
        ("float32", encode_dense(x)),
        ("float16", encode_dense(x, "float16")),
        ("bfloat16", encode_dense(x, "bfloat16")),
        ("offset", encode_offset(codes, -0.5, 0.1, 4)),
        ("planes", encode_planes(codes.astype(np.int16) - 7, 0.25, 4, 0b1011)),
        ("codebook", encode_codebook(codes % 5, floats((5,)))),
    ]


def masks(shape: tuple[int, ...]) -> dict[str, Mask]:
    """Every kind of mask of a tensor of two dimensions and more than ten elements."""
    n = int(np.prod(shape))
    return {
        "bitmap": BitMask.of(ramp(n, 1009) % 3 > 0),
        "gaps": GapMask.of(ramp(n, 1009) % 11 == 0),
        "prefix": PrefixMask.corner(shape, shape[0] - 1, max(1, shape[1] // 2)),
        "seeded": SeededMask(n, n // 3, 12345),
    }


def masked_tensors() -> Named:
    shape = (5, 9)
    named = [
        (f"{kind} {name}", encode_masked(values, mask, shape))
        for kind, mask in masks(shape).items()
        for name, values in masked_inner(mask.kept)
    ]
    none, all_of_it = BitMask.of(np.zeros(9, np.bool_)), GapMask.of(np.ones(9, np.bool_))
    named.append(("none", encode_masked(encode_dense(floats((0,))), none, (9,))))
    named.append(("all", encode_masked(encode_dense(floats((9,))), all_of_it, (3, 3))))
    empty = PrefixMask(0, 0, 0, 0)
    named.append(("empty", encode_masked(encode_dense(floats((0,))), empty, (0, 4))))
    plain = PrefixMask.corner((4, 6), 1, 5)
    return [*named, ("plain", encode_masked(encode_dense(floats((5,))), plain, (4, 6)))]


TILED = TensorTable(
    TensorRow(name, (300, 450), "float32")
    for name in ("bitmap", "gaps", "prefix", "seeded", "sparse")
)
"""Of more than two tiles."""


def tiled_tensors() -> Named:
    shape = TILED["bitmap"].shape
    sparse = GapMask.of(ramp(300 * 450, 1009) == 5)
    named = []
    for name, mask in {**masks(shape), "sparse": sparse}.items():
        codes = ramp(mask.kept, 2).astype(np.uint8)
        named.append((name, encode_masked(encode_offset(codes, -1.0, 2.0, 1), mask, shape)))
    return named


def lenet_tensors() -> Named:
    named = []
    for place, row in enumerate(LENET):
        x = floats(row.shape)
        named.append((row.name, quantize_uniform(x, 2) if place % 2 == 0 else encode_dense(x)))
    return named


CASES: dict[str, tuple[Named, TensorTable | None]] = {
    "nothing": ([], None),
    "dense": (dense_tensors(), None),
    "offset": (offset_tensors(), None),
    "planes": (planes_tensors(), None),
    "codebook": (codebook_tensors(), None),
    "lattice": (lattice_tensors(), None),
    "masked": (masked_tensors(), None),
    "tiled": (tiled_tensors(), TILED),
    "lenet": (lenet_tensors()[:4], LENET),
}


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Assert equal values, shapes and dtypes."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    npt.assert_array_equal(actual, expected)


def payload(tensors: Named, table: TensorTable | None = None) -> bytes:
    stream = io.BytesIO()
    write_payload(stream, tensors, table)
    return stream.getvalue()


if __name__ == "__main__":
    for case, (tensors, table) in CASES.items():
        (GOLDEN / f"{case}.payload").write_bytes(payload(tensors, table))
