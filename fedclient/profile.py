"""What only a process that imports workloads can measure: `python -m fedclient.profile`.

The daemon starts it once, reads one JSON object from its standard output and keeps the result
in `profile.json`; the process then ends and takes the memory of what it imported with it.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
import traceback
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fedclient.pipes import claim_standard_streams
from motley import plugins
from motley.errors import MotleyError

PROBE_SIDE = 384
PROBE_SECONDS = 0.2
LIBRARIES = ("torch", "numpy", "grpcio", "protobuf")


class Measurement(BaseModel):
    """What was measured, and what makes it out of date."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str = ""
    """Of library versions and options, set by the daemon: another one asks for a new measure."""
    accelerator: str = ""
    probe_gflops: float = 0.0
    workloads: Mapping[str, int] = Field(default_factory=dict)
    """Version by name, of those that can be imported."""
    unusable: Mapping[str, str] = Field(default_factory=dict)
    """Why the others cannot."""
    sources: Mapping[str, int] = Field(default_factory=dict)
    """Files that the workloads came from, with their time of change in nanoseconds."""


def library_versions() -> dict[str, str]:
    """Return the versions of what is installed, importing none of it."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def measure(mappings: Mapping[str, str], threads: int, device: str) -> Measurement:
    """Measure this machine; imports every workload, and torch for an accelerator alone."""
    versions, unusable, sources = {}, {}, {}
    for name in sorted(plugins.available(mappings)):
        try:
            found = plugins.resolve(name, mappings)
        except MotleyError as error:
            unusable[name] = str(error)
        except Exception as error:  # the import of a user's module may raise anything
            unusable[name] = traceback.format_exception_only(error)[-1].strip()
        else:
            versions[name] = found.version
            path = Path(inspect.getfile(found))
            sources[str(path)] = path.stat().st_mtime_ns
    return Measurement(
        accelerator=_accelerator(device),
        probe_gflops=probe_gflops(threads, device),
        workloads=versions,
        unusable=unusable,
        sources=sources,
    )


def probe_gflops(threads: int, device: str) -> float:
    """Return the speed of an fp32 matrix product on `threads` threads, in 10⁹ operations/s.

    Of the processor by numpy, whose library takes its threads from the environment.
    """
    left: Any
    if device == "cpu":
        left = np.ones((PROBE_SIDE, PROBE_SIDE), np.float32)
    else:
        import torch

        torch.set_num_threads(threads)
        left = torch.ones(PROBE_SIDE, PROBE_SIDE, device=device)
    for _ in range(3):  # the first products pay for thread pools and caches
        float((left @ left)[0, 0])
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < PROBE_SECONDS:
        float((left @ left)[0, 0])  # reading a value waits for an accelerator
        count += 1
    return round(2 * PROBE_SIDE**3 * count / elapsed / 1e9, 1)


def _accelerator(device: str) -> str:
    """Return the accelerator's name; "" when training runs on the processor."""
    if device == "cpu":
        return ""
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(torch.device(device)))
    if device == "mps" and torch.backends.mps.is_available():
        return "mps"
    return ""


def main() -> None:
    """Read the options (JSON) from standard input, write the measurement to standard output."""
    requests, replies = claim_standard_streams()
    options = json.loads(requests.read())
    measured = measure(options["workloads"], options["threads"], options["device"])
    replies.write(measured.model_dump_json().encode())


if __name__ == "__main__":
    main()
