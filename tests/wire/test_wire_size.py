"""Bytes are what the bits say: at most 2 % above what the format must carry."""

import math

import numpy as np
import pytest
from wire_cases import LENET, floats, payload, ramp

from motley.wire import (
    TILE,
    BitMask,
    PayloadReader,
    TensorRow,
    TensorTable,
    encode_codebook,
    encode_masked,
    encode_planes,
    quantize_uniform,
)


def resnet_table():
    """A ResNet-20 of 65 tensors with batch norm, 0.27 million weights."""
    rows = [TensorRow("conv1.weight", (16, 3, 3, 3), "float32")]
    channels = 16
    for place, width in enumerate([16] * 6 + [32] * 6 + [64] * 6):
        shape = (width, channels, 3, 3)
        rows.append(TensorRow(f"layers.{place}.conv.weight", shape, "float32"))
        rows.append(TensorRow(f"layers.{place}.bn.weight", (width,), "float32"))
        rows.append(TensorRow(f"layers.{place}.bn.bias", (width,), "float32"))
        channels = width
    rows.append(TensorRow("fc.weight", (10, 64), "float32"))
    rows.append(TensorRow("fc.bias", (10,), "float32"))
    return TensorTable(rows)


def as_offset(row, bits):
    return quantize_uniform(floats(row.shape), bits), row.size * bits, 8


def as_planes(row, bits):
    codes = np.zeros(row.shape, np.int16)
    return encode_planes(codes, 1.0, bits), row.size * (bits + 1), 4


def as_codebook(row, bits):
    indices = np.zeros(row.shape, np.uint8)
    m = min(1 << bits, max(1, row.size // 32))
    return encode_codebook(indices, floats((m,)), bits), row.size * bits, 4 * m


def as_masked(row, bits):
    """Nine tenths of each weight under a bitmap, as FedP3 sends them down; biases whole."""
    if len(row.shape) < 2:
        return as_offset(row, bits)
    mask = BitMask.of(ramp(row.size, 1009) % 10 < 9)
    values = quantize_uniform(floats((mask.kept,)), bits)
    # The head, a count a tile, and zeros up to a multiple of 8; then low and step.
    head = 12 + 4 * -(-row.size // TILE) + 7 + 8
    return encode_masked(values, mask, row.shape), mask.kept * bits + row.size, head


@pytest.mark.parametrize("table", [LENET, resnet_table()], ids=["lenet", "resnet20"])
@pytest.mark.parametrize("encode", [as_offset, as_planes, as_codebook, as_masked])
@pytest.mark.parametrize("bits", range(1, 9))
def test_payloads_are_at_most_two_percent_above_their_bits(table, encode, bits):
    made = [(row.name, *encode(row, bits)) for row in table]
    data = payload([(name, tensor) for name, tensor, _, _ in made], table)
    packed_bits = sum(code_bits for _, _, code_bits, _ in made)
    scales = sum(head for _, _, _, head in made)
    manifest = PayloadReader(data, table).info.manifest_bytes
    assert manifest <= 24 * len(table)
    assert len(data) <= 1.02 * (math.ceil(packed_bits / 8) + scales + manifest)


def test_the_manifest_takes_at_most_24_bytes_a_tensor():
    for count in (10, 11, 65, 1000):
        table = TensorTable(TensorRow(f"unit{i}.weight", (), "float32") for i in range(count))
        tensors = [(row.name, quantize_uniform(floats(()), 8)) for row in table]
        info = PayloadReader(payload(tensors, table), table).info
        assert info.manifest_bytes == 56 + 16 * count <= 24 * count
