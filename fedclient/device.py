"""The device profile: cheap facts read here, costly ones from a short-lived child, then kept."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from pydantic import ValidationError
from structlog.stdlib import get_logger

from fedclient.disk import Disk
from fedclient.errors import ProfileError
from fedclient.options import ClientOptions
from fedclient.profile import Measurement, library_versions
from fedclient.runner import child_environment
from fedclient.transfer.speed import LinkSpeed
from motley import plugins
from motley.wire.stubs import common_pb2

log = get_logger()

PROFILE_COMMAND = (sys.executable, "-m", "fedclient.profile")
_STORAGE_STEP = 64 * 1024**2
Measure = Callable[[Mapping[str, str], int, str], Awaitable[Measurement]]


def cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def clients_on_this_machine(proc: Path = Path("/proc")) -> int:
    """Return how many `fedclient start` processes run here, this one included; at least 1.

    Read from the command lines under /proc; where there is none, 1.
    """
    count = 0
    for entry in proc.glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        names = {word.rpartition(b"/")[2] for word in words[:4]}
        count += b"start" in words and bool(names & {b"fedclient", b"fedclient.cli"})
    return max(count, 1)


def training_threads(wanted: int) -> int:
    """Return `wanted` threads, or when 0 this client's share of the cores, at least 1.

    Threads of six training processes on two cores would spend their time waiting for each
    other, so the cores are divided by the clients on this machine.
    """
    return wanted or max(1, cores() // clients_on_this_machine())


def memory_bytes() -> int:
    """Return the physical memory in bytes; 0 where it cannot be read."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


async def measure_in_child(mappings: Mapping[str, str], threads: int, device: str) -> Measurement:
    """Run `fedclient.profile` and return what it measured.

    Raises:
        ProfileError: it failed, e.g. because there is no such accelerator.
    """
    child = await asyncio.create_subprocess_exec(
        *PROFILE_COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=child_environment(threads),
        start_new_session=True,
    )
    options = {"workloads": dict(mappings), "threads": threads, "device": device}
    try:
        output, errors = await child.communicate(json.dumps(options).encode())
    except asyncio.CancelledError:
        child.kill()
        await child.wait()
        raise
    try:
        return Measurement.model_validate_json(output)
    except ValidationError:
        last = (errors.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise ProfileError(
            f"this device could not be measured: {last}; is PyTorch here, and does it know "
            f"--device {device}? (pip install 'motley-fl[client]')"
        ) from None


class Device:
    """This device as the server sees it. `load` once, then `profile` at every check-in."""

    def __init__(
        self,
        options: ClientOptions,
        cache: Path,
        *,
        disk: Disk | None = None,
        measure: Measure = measure_in_child,
    ) -> None:
        self._options, self._cache = options, cache
        self._disk, self._measure = disk or Disk(), measure
        self.measurement = Measurement()
        self._libraries = library_versions()

    async def load(self) -> None:
        """Take the kept measurement while it fits this machine; otherwise measure anew.

        Raises:
            ProfileError: the measurement failed, or a workload that the owner mapped does.
        """
        kept = self._kept()
        if kept is None:
            threads = training_threads(self._options.threads)
            measured = await self._measure(self._options.workloads, threads, self._options.device)
            kept = measured.model_copy(update={"fingerprint": self._fingerprint()})
            self._refuse_broken_mappings(kept)
            self._disk.write(self._cache, kept.model_dump_json(indent=1).encode())
            log.info("device_measured", probe_gflops=kept.probe_gflops, threads=threads)
        self.measurement = kept

    def profile(self, link: LinkSpeed) -> common_pb2.DeviceProfile:
        """Return the profile for a check-in."""
        options, memory = self._options, memory_bytes()
        if options.memory_limit:
            memory = min(memory or options.memory_limit, options.memory_limit)
        return common_pb2.DeviceProfile(
            cores=cores(),
            memory_bytes=memory,
            storage_free_bytes=_free_bytes(self._options.state),
            accelerator=self.measurement.accelerator,
            architecture=platform.machine(),
            probe_gflops=self.measurement.probe_gflops,
            download_bytes_per_second=link.download,
            upload_bytes_per_second=link.upload,
            threads=training_threads(options.threads),
            tier=options.tier,
            labels=dict(options.labels),
            libraries=self._libraries,
        )

    def _kept(self) -> Measurement | None:
        try:
            kept = Measurement.model_validate_json(self._cache.read_bytes())
        except (OSError, ValidationError):
            return None
        sources_fit = all(_unchanged(path, mtime_ns) for path, mtime_ns in kept.sources.items())
        # What could not be imported may have been installed since: nothing here would show it.
        fits = kept.fingerprint == self._fingerprint() and sources_fit and not kept.unusable
        return kept if fits else None

    def _fingerprint(self) -> str:
        facts = [
            platform.machine(),
            cores(),
            self._libraries,
            sorted(plugins.available(self._options.workloads).items()),
            self._options.threads,
            self._options.device,
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _refuse_broken_mappings(self, measured: Measurement) -> None:
        for name, reason in measured.unusable.items():
            if name in self._options.workloads:
                raise ProfileError(reason)
            log.warning("workload_unusable", workload=name, reason=reason)


def _unchanged(path: str, mtime_ns: int) -> bool:
    try:
        return os.stat(path).st_mtime_ns == mtime_ns
    except OSError:
        return False


def _free_bytes(path: Path) -> int:
    """Return the free storage in steps, so that a profile does not change at every check-in."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free // _STORAGE_STEP * _STORAGE_STEP
