"""The allocator's settings, in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, sys
from motley.allocator import reuse_freed_memory, give_back
kept = reuse_freed_memory(one_heap=sys.argv[1] == "one_heap")
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    return bytearray(40 << 20)
use()
before = faults()
for _ in range(10):
    use()
resident = lambda: int(open("/proc/self/statm").read().split()[1])
after, held = faults(), resident()
give_back()
print(kept, after - before, held - resident())
"""


def measured(heaps: str = "", **extra: str) -> tuple[str, int, int]:
    environment = {key: v for key, v in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, heaps],
        capture_output=True,
        text=True,
        env={**environment, **extra},
    )
    assert done.returncode == 0, done.stderr
    kept, faults, given = done.stdout.split()
    return kept, int(faults), int(given)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
@pytest.mark.parametrize("heaps", ["", "one_heap"])
def test_freed_memory_is_used_again_until_it_is_given_back(heaps: str) -> None:
    kept, faults, given = measured(heaps)
    assert kept == "True"
    assert faults < 2000  # ten times 10,240 pages, were each block the kernel's
    assert given > 8000  # of 10,240 pages


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_the_switch_leaves_the_allocator_alone() -> None:
    kept, faults, _ = measured(MOTLEY_ALLOCATOR="plain")
    assert kept == "False"
    assert faults > 50_000


SIMULATION = """
import resource, sys
from fedserver.cli import app
app(["simulate", sys.argv[1]], standalone_mode=False)
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.zeros(10 << 20)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults, file=sys.stderr)
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
RUN = """
[run]
name = "brief"
algorithm = "fedavg"
rounds = 1
[workload]
name = "digits"
[clients]
expected = 1
[settings]
local_steps = 1
batch_size = 4
[simulate]
data = "digits?train=8"
"""


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="no huge pages here"
)
def test_large_tensors_of_a_simulation_are_on_huge_pages(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    command = [sys.executable, "-c", SIMULATION, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    faults = int(done.stderr.splitlines()[-1])
    assert faults < 20_000  # of 102,400 small pages
