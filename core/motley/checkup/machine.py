"""What a doctor sees of the machine: versions, torch, the disk, the codec and its speed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from motley import __version__
from motley.checkup.findings import Finding, fine, problem, warning
from motley.wire import compiled, pack, unpack

LITTLE_SPACE = 1 << 30
NO_SPACE = 64 << 20
IMPORT_SECONDS = 180.0
TORCH_COMMAND = (sys.executable, "-m", "motley.checkup.torch_build")
NUMBA_COMMAND = (sys.executable, "-c", "import numba; print(numba.__version__)")
CODEC_VALUES = 1 << 20
CODEC_BITS = 4
CODEC_TRIES = 3
"""The fastest counts: the first pays for memory that is new."""
SLOW_CODEC = 10.0
"""MB/s of float32 weights; a model of 100 MB then waits for 10 s at each end of a round."""


def versions(libraries: Sequence[str]) -> Finding:
    """Tell which versions are installed; a library that is not is a problem."""
    found, missing = [f"motley-fl {__version__}", "python " + sys.version.split()[0]], []
    for name in libraries:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        lacks = ", ".join(missing)
        do = "install what is missing"
        return problem("versions", f"{lacks} missing", do, f"pip install {' '.join(missing)}")
    return fine("versions", ", ".join(found))


def torch_build(device: str = "cpu", command: Sequence[str] = TORCH_COMMAND) -> Finding:
    """Tell which torch trains here, as a short-lived process sees it.

    Args:
        device: where training is to run: `cpu`, `cuda`, `cuda:1`, `mps`.
        command: what answers with one JSON object (`motley.checkup.torch_build`).
    """
    mend = ("install PyTorch for this machine", "pip install 'motley-fl[client]'")
    said, reason = _answer(command)
    try:
        facts: Mapping[str, object] = json.loads(said)
    except ValueError:
        return problem("torch", reason or f"it says {said!r}", *mend)
    text = f"{facts['version']}, {facts['threads']} threads, accelerators: {facts['accelerators']}"
    kind = device.partition(":")[0]
    if kind != "cpu" and kind not in str(facts["accelerators"]):
        return problem(
            "torch", text, f"--device {device} needs a torch that sees it; this one does not"
        )
    return fine("torch", text)


def disk(what: str, folder: Path) -> Finding:
    """Tell whether a folder, or the nearest one above it, can be written, and how much is free."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        return problem(what, f"{place} cannot be written", "give its owner's rights, or another")
    free = shutil.disk_usage(place).free
    text = f"{free / 1e9:.1f} GB free at {place}"
    if free < NO_SPACE:
        return problem(what, text, "make room: nothing can be kept")
    if free < LITTLE_SPACE:
        return warning(what, text, "make room: models and updates may not fit")
    return fine(what, text)


def codec() -> Finding:
    """Tell how fast this device packs and unpacks weights of 4 bits, in MB/s of float32."""
    codes = (np.arange(CODEC_VALUES) % (1 << CODEC_BITS)).astype(np.uint8)
    packs = unpacks = float("inf")
    for _ in range(CODEC_TRIES):
        started = time.perf_counter()
        packed = pack(codes, CODEC_BITS)
        packs = min(packs, time.perf_counter() - started)
        started = time.perf_counter()
        result = unpack(packed, CODEC_BITS, CODEC_VALUES)
        unpacks = min(unpacks, time.perf_counter() - started)
    speeds = [4 * CODEC_VALUES / 1e6 / seconds for seconds in (packs, unpacks)]
    if not np.array_equal(result, codes):
        do = "numpy computes wrong results here: install another version of it"
        return problem("codec", "unpacking does not give back what was packed", do)
    text = (
        f"packs {speeds[0]:.0f} MB/s, unpacks {speeds[1]:.0f} MB/s (float32, to {CODEC_BITS} bits)"
    )
    if min(speeds) < SLOW_CODEC:
        return warning("codec", text, "something else uses the processor, or numpy is a slow build")
    return fine("codec", text)


def compiled_loops(command: Sequence[str] = NUMBA_COMMAND) -> Finding:
    """Tell whether compiled loops decode here, as a short-lived process sees it.

    Args:
        command: what imports numba and prints its version.
    """
    what = "compiled loops"
    if os.environ.get(compiled.SWITCH) == "0":
        return fine(what, f"not used: {compiled.SWITCH}=0 keeps numba out")
    if find_spec("numba") is None:
        return fine(what, "not used: numba, the extra [fast], is not installed; numpy decodes")
    found, reason = _answer(command)
    if reason:
        do = "numpy decodes meanwhile, slower; install a numba that fits, or leave it at that"
        install = "pip install --upgrade 'motley-fl[fast]'"
        return warning(what, f"not used: {reason}", do, install)
    use = f"used once a process has decoded {compiled.PAYS_FROM:,} values"
    return fine(what, f"{use}; numba {found}")


def _answer(command: Sequence[str]) -> tuple[str, str]:
    """Return what a short-lived process prints, or "" and why it prints nothing."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=IMPORT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer within {IMPORT_SECONDS:.0f} s"
    except OSError as error:
        return "", str(error)
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout.strip(), ""
    last = done.stderr.strip().splitlines() or [f"it ends with status {done.returncode}"]
    return "", last[-1]
