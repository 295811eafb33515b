"""`plan = "auto"`: layer set and keep ratios from what a device measured of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from motley.device import Hardware, Link

DOWNLOAD_SHARE = UPLOAD_SHARE = 0.25
"""Of a round's deadline that a transfer may take."""
COMPUTE_SHARE = 0.5
"""Of a round's deadline that the local steps may take."""
MEMORY_SHARE = 0.25
"""Of a device's memory that a model in training may take."""
BYTES_IN_TRAINING = 16
"""Of one value: itself, its gradient, a step and its masks."""
LEAST_KEEP = 0.1
STEP = 0.05
"""Keep ratios are multiples of it: clients of like devices then share a broadcast."""


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a round asks of a device."""

    sizes: Mapping[str, int]
    """Values of each unit that can be chosen, in order of the model."""
    final: int
    """Values of the last unit."""
    deadline: float
    """Seconds of a round; 0: no limit."""
    samples: int
    """Samples that the local steps of a round see."""
    up_bytes: float = 4.0
    """Bytes of a value on the way up."""
    down_bytes: float = 4.0


@dataclass(frozen=True)
class Share:
    """What one client gets: L_i, p_i and q_i."""

    units: tuple[str, ...]
    keep: float
    local_keep: float


def affordable_share(
    demands: Demands, wished: Sequence[str], link: Link, hardware: Hardware
) -> Share:
    """Return what a device can afford; what it has not measured limits nothing.

    - Link up: the units of `wished` (the policy's choice, its own group's first) are taken one by
      one while they and the last unit go up in a quarter of the deadline. Where not even the
      first does, it is the smallest unit of the model that is sent.
    - Link down and memory: the largest p, a multiple of 0.05 from 0.1 to 1, at which the units
      sent whole and p of the others come down in a quarter of the deadline, and a model of that
      many values trains (16 bytes each) in a quarter of the memory.
    - Compute: q = what half of the deadline allows over what one pass needs, at 6 operations a
      value and sample. A convolution uses a value more than once, so this is a bound from
      below; with q near its least the device is too slow for the run in any case.
    """
    budget = _budget(link.upload, demands.deadline * UPLOAD_SHARE) / demands.up_bytes
    units: list[str] = []
    sent = demands.final
    for unit in wished:
        if sent + demands.sizes[unit] <= budget:
            units.append(unit)
            sent += demands.sizes[unit]
    if not units:
        units = [min(demands.sizes, key=lambda unit: demands.sizes[unit])]
        sent += demands.sizes[units[0]]
    others = sum(demands.sizes.values()) + demands.final - sent
    down = _budget(link.download, demands.deadline * DOWNLOAD_SHARE) / demands.down_bytes
    room = hardware.memory * MEMORY_SHARE / BYTES_IN_TRAINING if hardware.memory else math.inf
    keep = _rounded((min(down, room) - sent) / others) if others else 1.0
    work = 6.0 * demands.samples * (sent + keep * others)
    speed = _budget(hardware.gflops * 1e9, demands.deadline * COMPUTE_SHARE)
    order = list(demands.sizes)
    return Share(tuple(sorted(units, key=order.index)), keep, _rounded(speed / work))


def _budget(rate: float, seconds: float) -> float:
    """Return what a rate gives in so many seconds; unknown or without limit: all of it."""
    return rate * seconds if rate and seconds else math.inf


def _rounded(share: float) -> float:
    if share >= 1:
        return 1.0
    return round(max(LEAST_KEEP, math.floor(share / STEP + 1e-9) * STEP), 2)
