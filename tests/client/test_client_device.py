"""The device profile: what is measured, kept, and shared out."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from fedclient.device import Device, clients_on_this_machine, cores, training_threads
from fedclient.errors import OptionError, ProfileError
from fedclient.memory import is_out_of_memory, kernel_oom_kills
from fedclient.options import ClientOptions, check_memory_limit, parse_size
from fedclient.profile import Measurement
from fedclient.transfer.speed import LinkRecord, LinkSpeed


def options(tmp_path: Path, **changes: object) -> ClientOptions:
    values = {"server": "h:1", "name": "n", "data": "d", "state": tmp_path, **changes}
    return ClientOptions(**values)  # type: ignore[arg-type]


class Measure:
    def __init__(self, **found: object) -> None:
        self.calls, self._found = 0, found

    async def __call__(self, *_: object) -> Measurement:
        self.calls += 1
        return Measurement(probe_gflops=5.0, **self._found)  # type: ignore[arg-type]


def loaded(settings: ClientOptions, cache: Path, measure: Measure) -> Device:
    device = Device(settings, cache, measure=measure)
    asyncio.run(device.load())
    return device


def test_a_restart_needs_no_measurement_until_something_changes(tmp_path):
    source = tmp_path / "workload.py"
    source.write_text("version = 1")
    cache = tmp_path / "profile.json"
    measure = Measure(sources={str(source): source.stat().st_mtime_ns})
    loaded(options(tmp_path), cache, measure)
    loaded(options(tmp_path), cache, measure)
    assert measure.calls == 1
    loaded(options(tmp_path, workloads={"a": "b:c"}), cache, measure)
    assert measure.calls == 2, "another mapping"
    source.write_text("version = 22")
    import os

    os.utime(source, ns=(1, 1))
    loaded(options(tmp_path, workloads={"a": "b:c"}), cache, measure)
    assert measure.calls == 3, "the workload's file changed"


def test_the_owners_choices_are_in_the_profile(tmp_path):
    settings = options(
        tmp_path, tier="small", labels={"room": "2"}, threads=3, memory_limit=64 * 1024**2
    )
    device = loaded(settings, tmp_path / "p.json", Measure())
    profile = device.profile(LinkSpeed(download=5.0))
    assert (profile.tier, dict(profile.labels), profile.threads) == ("small", {"room": "2"}, 3)
    assert profile.memory_bytes == 64 * 1024**2
    assert (profile.probe_gflops, profile.download_bytes_per_second) == (5.0, 5.0)
    assert profile.libraries["torch"]


def test_a_mapping_that_fails_is_an_error_an_installed_one_a_warning(tmp_path):
    broken = Measure(unusable={"mine": "no module", "digits": "no sklearn"})
    with pytest.raises(ProfileError, match="no module"):
        loaded(options(tmp_path, workloads={"mine": "x:y"}), tmp_path / "a.json", broken)
    loaded(options(tmp_path), tmp_path / "b.json", broken)


def test_cores_are_divided_by_the_clients_of_this_machine(tmp_path):
    lines = {
        "10": ["/usr/bin/python3", "/usr/bin/fedclient", "start", "--name", "a"],
        "11": ["python", "-m", "fedclient.cli", "start"],
        "12": ["/usr/bin/python3", "/usr/bin/fedclient", "models"],
        "13": ["vim", "fedclient"],
    }
    for pid, words in lines.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_bytes("\0".join(words).encode() + b"\0")
    assert clients_on_this_machine(tmp_path) == 2
    assert clients_on_this_machine(tmp_path / "nothing") == 1
    assert training_threads(5) == 5
    assert 1 <= training_threads(0) <= cores()


def test_the_share_of_the_cores_is_told_anew_at_every_check_in(tmp_path, monkeypatch):
    monkeypatch.setattr("fedclient.device.cores", lambda: 8)
    shared = loaded(options(tmp_path), tmp_path / "a.json", Measure())
    fixed = loaded(options(tmp_path, threads=2), tmp_path / "b.json", Measure())
    for clients, share in [(1, 8), (3, 2), (20, 1)]:
        monkeypatch.setattr("fedclient.device.clients_on_this_machine", lambda n=clients: n)
        assert shared.profile(LinkSpeed()).threads == share
        assert fixed.profile(LinkSpeed()).threads == 2


@pytest.mark.processes
def test_the_measuring_process_measures(tmp_path):
    from fedclient.device import measure_in_child

    measured = asyncio.run(measure_in_child({"linear": "linear_workload:Linear"}, 1, "cpu"))
    assert measured.workloads["linear"] == 3
    assert measured.probe_gflops > 0
    assert any(path.endswith("linear_workload.py") for path in measured.sources)


def test_link_speed_is_smoothed_and_kept(tmp_path):
    link = LinkRecord(tmp_path / "link.json")
    link.downloaded(1000, 1.0)
    assert link.speed.download == 0, "too short to tell"
    link.downloaded(1_000_000, 1.0)
    link.downloaded(2_000_000, 1.0)
    assert LinkRecord(tmp_path / "link.json").speed.download == pytest.approx(1_300_000)


def test_sizes_and_limits():
    assert parse_size("512M") == 512 * 1024**2
    assert parse_size("1.5GiB") == 1536 * 1024**2
    assert check_memory_limit("") == 0
    with pytest.raises(OptionError, match="Linux alone"):
        check_memory_limit("1G", "darwin")
    if sys.platform == "linux":
        assert check_memory_limit("1G") == 1024**3
        assert kernel_oom_kills() >= 0


def test_errors_of_memory_are_told_from_others():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: tried 4 B"))
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    wrapped = RuntimeError("in the loader")
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)


def test_the_server_is_told_of_a_speed_when_it_changes_much(tmp_path):
    link = LinkRecord(tmp_path / "link.json")
    link.uploaded(1 << 20, 1.0)
    first = link.told()
    assert first.upload == link.speed.upload == 1 << 20
    link.uploaded(1 << 20, 0.9)
    assert link.speed.upload > first.upload
    assert link.told() == first, "3 % more"
    link.uploaded(1 << 20, 0.25)
    assert link.told() == link.speed != first
