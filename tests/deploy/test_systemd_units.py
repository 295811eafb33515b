"""systemd units as their installer lays them: systemd itself reads them and rates them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNITS = ("fedserver.service", "fedclient@phone-1.service")
SYSTEM = Path("/lib/systemd/system")

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or not (SYSTEM / "sysinit.target").exists(),
    reason="systemd-analyze is not here",
)


def install(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DEPLOY / "systemd" / "install.sh", *arguments],
        env={**os.environ, "DESTDIR": str(root)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A root folder with the units of a server and a client, and programs under their names."""
    for arguments in (("server",), ("client", "phone-1", "--gpu")):
        done = install(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
    for name in ("opt/motley/bin/fedserver", "opt/motley/bin/fedclient", "bin/sh"):
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    return tmp_path


@needs_systemd
def test_systemd_accepts_the_units(machine: Path) -> None:
    shutil.copytree(SYSTEM, machine / "usr/lib/systemd/system", symlinks=True)
    command = ["systemd-analyze", "verify", "--man=no", f"--root={machine}"]
    done = subprocess.run([*command, *UNITS], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "fedserver" in line or "fedclient" in line]
    assert not ours
    assert done.returncode == 0, done.stderr

    unit = machine / "etc/systemd/system/fedserver.service"
    unit.write_text(unit.read_text().replace("/opt/motley/bin/fedserver serve", "/nowhere"))
    broken = subprocess.run([*command, UNITS[0]], capture_output=True, text=True)
    assert "/nowhere" in broken.stderr, "the check sees what is wrong"


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_the_units_are_hardened(machine: Path, unit: str) -> None:
    (machine / "etc/systemd/system/fedclient@.service.d/gpu.conf").unlink()
    command = ["systemd-analyze", "security", f"--root={machine}", "--offline=true", unit]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"exposure level for .*: ([\d.]+)", done.stdout + done.stderr)
    assert found, done.stderr
    assert float(found[1]) <= 2.5, "of 10, where 9.6 is a unit without any of it"


def test_settings_that_are_there_stay(machine: Path) -> None:
    settings = machine / "etc/motley/phone-1.env"
    settings.write_text("FEDCLIENT_DATA=mine\n")
    assert install(machine, "client", "phone-1").returncode == 0
    assert settings.read_text() == "FEDCLIENT_DATA=mine\n"


@pytest.mark.parametrize("arguments", [(), ("client",), ("client", "../x"), ("client", "-x")])
def test_wrong_arguments_install_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = install(tmp_path, *arguments)
    assert done.returncode == 2
    assert "usage" in done.stderr
    assert not list(tmp_path.iterdir())
