"""A second reading of docs/wire-format.md: slow, plain Python, no code of `motley.wire`.

`decode(data, table)` returns {name: flat list of numbers}. Valid payloads only.
"""

from __future__ import annotations

import math
import struct

DTYPES = ["float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
DENSE = "fdbhiqB?e"


def f32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


def field(data: bytes, bits: int, index: int) -> int:
    per_byte = 8 // bits
    return data[index // per_byte] >> bits * (index % per_byte) & (1 << bits) - 1


def unpack_codes(data: bytes, bits: int, n: int) -> list[int]:
    codes, shift = [0] * n, 0
    for group in (8, 4, 2, 1):
        if bits & group:
            codes = [code | field(data, group, i) << shift for i, code in enumerate(codes)]
            data = data[math.ceil(n * group / 8) :]
            shift += group
    return codes


def dither(seed: int, i: int) -> float:
    z = (seed + (i // 2 + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31
    return ((z >> (32 if i % 2 else 0)) % 2**32 >> 8) / 2**24 - 0.5


def decode_lattice(k: int, dimensions: int, segment: bytes, n: int) -> list[float]:
    seed, step = struct.unpack_from("<Qf", segment)
    codes = unpack_codes(segment[12:], k, math.ceil(n / dimensions) * dimensions)
    (height,) = struct.unpack("<f", struct.pack("<I", 0x3F5DB3D7))
    values = []
    for i in range(n):
        place, scale = codes[i] - (2**k - 1) / 2, step
        if dimensions == 2 and i % 2 == 0:
            place += 0.25 if codes[i + 1] % 2 else -0.25
        elif dimensions == 2:
            scale = f32(step * height)
        values.append(f32(scale * f32(place - dither(seed, i))))
    return values


PHILOX_ROUND = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
PHILOX_KEY = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 of Salmon et al., SC 2011, section 4."""
    for _ in range(10):
        first, second = PHILOX_ROUND[0] * counter[0], PHILOX_ROUND[1] * counter[2]
        counter = [
            second >> 64 ^ counter[1] ^ key[0],
            second & 2**64 - 1,
            first >> 64 ^ counter[3] ^ key[1],
            first & 2**64 - 1,
        ]
        key = [(k + bump) % 2**64 for k, bump in zip(key, PHILOX_KEY, strict=True)]
    return counter


def seeded_tile(seed: int, tile: int, size: int, share: int) -> set[int]:
    words = [
        word
        for block in range(math.ceil(size / 4))
        for word in philox([block + 1, tile, 0, 0], [seed, 0])
    ]
    ordered = sorted(range(size), key=lambda j: words[j] // 65536 * 65536 + j)
    return set(ordered[:share])


def read_mask(kind: int, data: bytes, n: int, kept: int) -> tuple[list[int], int]:
    """Return the kept places and the bytes of the mask."""
    tiles = [(start, min(start + 65536, n)) for start in range(0, n, 65536)]
    if kind == 1:
        bits = data[4 * len(tiles) :]
        return [i for i in range(n) if bits[i // 8] >> i % 8 & 1], 4 * len(tiles) + (n + 7) // 8
    if kind == 2:
        counts = struct.unpack_from(f"<{len(tiles)}I", data)
        at, places = 8 * len(tiles), []
        for (start, _), count in zip(tiles, counts, strict=True):
            place = start - 1
            for _ in range(count):
                gap = shift = 0
                while True:
                    gap |= (data[at] & 127) << shift
                    shift, at = shift + 7, at + 1
                    if data[at - 1] < 128:
                        break
                place += gap + 1
                places.append(place)
        return places, at
    if kind == 3:
        period, run = struct.unpack_from("<2Q", data)
        return [i for i in range(n) if run and i % period < run and i // period < kept // run], 16
    assert kind == 4
    (seed,), chosen = struct.unpack_from("<Q", data), []
    for number, (start, stop) in enumerate(tiles):
        share = kept * stop // n - kept * start // n
        chosen += sorted(start + j for j in seeded_tile(seed, number, stop - start, share))
    return chosen, 8


def decode_masked(kind: int, segment: bytes, n: int) -> list[float]:
    (kept,) = struct.unpack_from("<Q", segment)
    places, length = read_mask(kind, segment[12:], n, kept)
    assert len(places) == kept
    at = (12 + length + 7) // 8 * 8
    values = decode_segment(segment[8], segment[9:12], segment[at:], kept)
    found = [0.0] * n
    for place, value in zip(places, values, strict=True):
        found[place] = value
    return found


def decode_segment(encoding: int, parameters: bytes, segment: bytes, n: int) -> list[float]:
    bits = parameters[0]
    if encoding == 5:
        return decode_masked(bits, segment, n)
    if encoding == 1:
        if bits == 10:
            raw = struct.unpack(f"<{n}H", segment)
            return [struct.unpack("<f", struct.pack("<I", half << 16))[0] for half in raw]
        return list(struct.unpack(f"<{n}{DENSE[bits - 1]}", segment))
    if encoding == 2:
        low, step = struct.unpack_from("<2f", segment)
        return [f32(low + f32(code * step)) for code in unpack_codes(segment[8:], bits, n)]
    if encoding == 3:
        (step,), size, at = struct.unpack_from("<f", segment), (n + 7) // 8, 4
        sign, magnitude = segment[at : at + size], [0] * n
        for bit in range(8):
            if parameters[1] >> bit & 1:
                at += size
                plane = segment[at : at + size]
                magnitude = [m | field(plane, 1, i) << bit for i, m in enumerate(magnitude)]
        return [f32((-m if field(sign, 1, i) else m) * step) for i, m in enumerate(magnitude)]
    if encoding == 6:
        return decode_lattice(bits, parameters[1], segment, n)
    centres = struct.unpack_from(f"<{parameters[1] + 1}f", segment)
    return [centres[i] for i in unpack_codes(segment[4 * len(centres) :], bits, n)]


def entries(data: bytes, table: list[tuple[str, tuple[int, ...]]] | None):
    magic, version, flags, count, manifest = struct.unpack_from("<6sBBII", data)
    assert (magic, version, flags) == (b"MOTLEY", 1, int(table is not None))
    at = 56
    for _ in range(count):
        encoding, parameters = data[at + 4], data[at + 5 : at + 8]
        (length,) = struct.unpack_from("<Q", data, at + 8)
        if table is not None:
            name, shape = table[struct.unpack_from("<I", data, at)[0]]
            at += 16
        else:
            size, _, dims = struct.unpack_from("<HBB", data, at)
            shape = struct.unpack_from(f"<{dims}Q", data, at + 16)
            name = data[at + 16 + 8 * dims : at + 16 + 8 * dims + size].decode()
            at += (16 + 8 * dims + size + 7) // 8 * 8
        yield name, shape, encoding, parameters, length
    assert at == 56 + manifest


def decode(data: bytes, table=None) -> dict[str, list[float]]:
    at = 56 + struct.unpack_from("<I", data, 12)[0]
    values = {}
    for name, shape, encoding, parameters, length in entries(data, table):
        segment = data[at : at + length]
        values[name] = decode_segment(encoding, parameters, segment, math.prod(shape))
        at += (length + 7) // 8 * 8
    assert at == len(data)
    return values
