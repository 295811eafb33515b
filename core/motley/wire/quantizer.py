"""Float values to uniform codes of 1 to 8 bits, with or without stochastic rounding."""

from __future__ import annotations

import numpy as np

from motley.errors import EncodingError
from motley.wire.encoding import Array, Floats, as_floats
from motley.wire.encodings.offset import HEAD, UniformOffset, offset_segment
from motley.wire.encodings.planes import encode_planes
from motley.wire.packing import TILE, pack_slice
from motley.wire.tensor import EncodedTensor

_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST_NORMAL = np.finfo(np.float32).tiny


def quantize_uniform(
    values: Array, bits: int, rng: np.random.Generator | None = None
) -> EncodedTensor:
    """Quantize float32 values of any shape to 2^bits even levels from their minimum on.

    step = (max - min) / (2^bits - 1), rounded up to float32. With `rng` the rounding is
    stochastic and unbiased (QSGD, arXiv:1610.02132): t = (x - min) / step becomes ⌊t⌋ + 1 with
    probability t - ⌊t⌋, else ⌊t⌋; values on a level stay there. Without it, nearest. The error
    is below one step (half a step), besides float32 rounding. A constant tensor has step 0.

    Works in tiles: memory is the packed result and a few tiles.

    Raises:
        EncodingError: a value is NaN or infinite, or max - min exceeds the float32 range.
    """
    encoding = UniformOffset(bits)
    flat = as_floats(values)
    low, step = _scale(flat, encoding.levels)
    segment = offset_segment(flat.size, float(low), float(step), bits)
    quantizer = _TileQuantizer(low, step, encoding.levels, rng)
    for start in range(0, flat.size, TILE):
        codes = quantizer(flat[start : start + TILE])
        pack_slice(codes, bits, flat.size, start, segment[HEAD:])
    return EncodedTensor(encoding, values.shape, "float32", segment)


def quantize_planes(values: Array, bits: int) -> EncodedTensor:
    """Quantize float32 values of any shape to sign and `bits` bits of magnitude, to nearest.

    step = max|x| / (2^bits - 1) in float32, code = round(|x| / step) with the sign of x (FedMPQ,
    arXiv 2311.18129): 2^(bits+1) - 1 levels, even about 0. All zeros have step 0.

    Raises:
        EncodingError: a value is NaN or infinite, or `bits` is not 1 to 8.
    """
    flat = as_floats(values)
    top = (1 << bits) - 1
    largest = np.float32(max(float(flat.max()), -float(flat.min()))) if flat.size else np.float32(0)
    if not np.isfinite(largest):
        raise EncodingError("values to quantize are not finite; check the training step")
    step = np.float32(largest / np.float32(top))
    if step < _SMALLEST_NORMAL:
        step = np.float32(0)
    codes = np.zeros(flat.size, np.int16)
    if step > 0:
        for start in range(0, flat.size, TILE):
            tile = np.rint(flat[start : start + TILE] / step)
            codes[start : start + TILE] = np.clip(tile, -top, top)
    return encode_planes(codes.reshape(values.shape), float(step), bits)


class _TileQuantizer:
    """Turns tiles into codes in buffers of its own, which the next call overwrites."""

    def __init__(
        self, low: np.float32, step: np.float32, levels: int, rng: np.random.Generator | None
    ) -> None:
        self._low, self._step, self._top, self._rng = low, step, np.float32(levels), rng
        self._scaled, self._floor = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
        self._codes = np.empty(TILE, np.uint8)
        self._up = np.empty(TILE, np.bool_)

    def __call__(self, tile: Floats) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        codes = self._codes[: tile.size]
        if self._step == 0:
            codes[:] = 0
            return codes
        scaled, floor = self._scaled[: tile.size], self._floor[: tile.size]
        np.subtract(tile, self._low, out=scaled)
        np.divide(scaled, self._step, out=scaled)
        np.minimum(scaled, self._top, out=scaled)
        if self._rng is None:
            np.rint(scaled, out=floor)
            np.copyto(codes, floor, casting="unsafe")
            return codes
        np.floor(scaled, out=floor)
        np.copyto(codes, floor, casting="unsafe")
        # u < t - ⌊t⌋ instead of ⌊t + u⌋: the sum would be rounded, and move values on a level.
        np.subtract(scaled, floor, out=scaled)
        self._rng.random(out=floor, dtype=np.float32)
        up = np.less(floor, scaled, out=self._up[: tile.size])
        return np.add(codes, up.view(np.uint8), out=codes)


def _scale(flat: Floats, levels: int) -> tuple[np.float32, np.float32]:
    """Return (low, step) in float32 with low + levels · step not below the maximum."""
    if flat.size == 0:
        return np.float32(0), np.float32(0)
    low, high = flat.min(), flat.max()
    if np.isnan(low) or np.isnan(high):
        raise EncodingError("values to quantize hold NaN; check the training step or the data")
    if np.isinf(low) or np.isinf(high):
        raise EncodingError("values to quantize are infinite; check the learning rate or clipping")
    span = float(high) - float(low)
    if span == 0:
        return low, np.float32(0)
    if span > _LARGEST:
        raise EncodingError(f"values from {low} to {high}: their span exceeds the float32 range")
    step = np.float32(span / levels)
    if float(step) * levels < span:
        step = np.nextafter(step, np.float32(np.inf))
    # A subnormal step would be taken for 0 by processors that flush such numbers.
    return low, np.maximum(step, _SMALLEST_NORMAL)
