"""Shell scripts: shellcheck, and the containers' and Termux's with stand-ins for what they call."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "deploy").rglob("*.sh"))


def put(folder: Path, name: str, body: str) -> None:
    """Write a program that stands in for another one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def sh(
    path: Path, *arguments: str, programs: Path, **extra: str
) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(programs.parent),
        **extra,
    }
    shell = "bash" if "bash" in path.read_text().splitlines()[0] else "sh"
    return subprocess.run(
        [shell, path, *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not here")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_shellcheck_finds_nothing(path: Path) -> None:
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert os.access(path, os.X_OK)


def test_a_server_container_makes_its_authority_once(tmp_path: Path) -> None:
    programs, data = tmp_path / "bin", tmp_path / "data"
    put(programs, "fedserver",
        f'echo "$@" >>{tmp_path}/calls\n'
        '[ "$1" = init ] || exit 0\n'
        'mkdir -p "$3/identity" && touch "$3/identity/authority.pem"')  # fmt: skip
    script = ROOT / "deploy/container/serve.sh"
    refused = sh(script, programs=programs, MOTLEY_DATA=str(data))
    assert refused.returncode != 0
    assert "MOTLEY_ADDRESS" in refused.stderr
    for _ in range(2):
        told = {"MOTLEY_DATA": str(data), "MOTLEY_ADDRESS": "host.example"}
        done = sh(script, "--no-join", programs=programs, **told)
        assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["init", "serve", "serve"]
    assert "--address host.example" in calls[0]
    assert calls[1].endswith("--no-join")


def test_a_client_container_joins_once(tmp_path: Path) -> None:
    programs, state = tmp_path / "bin", tmp_path / "state"
    put(programs, "fedclient",
        f'echo "$@ token=${{MOTLEY_TOKEN:-}}" >>{tmp_path}/calls\n'
        '[ "$1" = join ] || exit 0\n'
        f"mkdir -p {state}/identity && touch {state}/identity/client.pem")  # fmt: skip
    token = tmp_path / "token"
    token.write_text("motley1-abc\n")
    script = ROOT / "deploy/container/join-and-start.sh"
    told = {"MOTLEY_STATE": str(state), "MOTLEY_NAME": "phone", "MOTLEY_TOKEN_FILE": str(token)}
    for _ in range(2):
        done = sh(script, "--data", "x?a=1&b=2", programs=programs, **told)
        assert done.returncode == 0, done.stderr
    join, *starts = (tmp_path / "calls").read_text().splitlines()
    assert join.startswith("join motley1-abc --name phone")
    assert len(starts) == 2
    assert all("--data x?a=1&b=2" in start for start in starts)


def test_tokens_are_made_once_for_each_client(tmp_path: Path) -> None:
    programs, folder = tmp_path / "bin", tmp_path / "tokens"
    folder.mkdir()
    put(programs, "fedserver", f'echo "$@" >>{tmp_path}/calls\necho \'{{"token": "motley1-x"}}\'')
    script = ROOT / "deploy/container/tokens.sh"
    for _ in range(2):
        told = {"MOTLEY_DATA": str(tmp_path)}
        done = sh(script, str(folder), "phone", "pc", programs=programs, **told)
        assert done.returncode == 0, done.stderr
    assert len((tmp_path / "calls").read_text().splitlines()) == 2
    assert {p.name: p.read_text() for p in folder.iterdir()} == dict.fromkeys(
        ("phone", "pc"), "motley1-x\n"
    )
    assert (folder / "phone").stat().st_mode & 0o077 == 0


def test_the_phone_holds_a_wake_lock_and_waits_for_power_and_wifi(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    for name in ("termux-wake-lock", "termux-wake-unlock", "sleep"):
        put(programs, name, f"echo {name} >>{tmp_path}/calls")
    put(tmp_path / "motley/bin", "fedclient",
        f'echo "fedclient $@" >>{tmp_path}/calls\n'
        f'[ "$(grep -c fedclient {tmp_path}/calls)" -gt 1 ] && exit 5 || exit 137')  # fmt: skip
    settings = tmp_path / ".config/motley/client.env"
    settings.parent.mkdir(parents=True)
    settings.write_text("NAME=phone-1\nDATA='digits?clients=2&client=0'\nOPTIONS='--threads 2'\n")
    done = sh(ROOT / "deploy/android/run.sh", programs=programs)
    assert done.returncode == 5, "a certificate that ran out ends it; being killed did not"
    calls = (tmp_path / "calls").read_text().splitlines()
    kinds = [call.split()[0] for call in calls]
    assert kinds == ["termux-wake-lock", "fedclient", "sleep", "fedclient", "termux-wake-unlock"]
    assert calls[1].endswith(
        "start --name phone-1 --data digits?clients=2&client=0 "
        "--only-when charging,unmetered --threads 2"
    )


@pytest.mark.parametrize(
    "path", ["jetson/install.sh", "raspberry-pi/install.sh", "android/install.sh"]
)
def test_an_installer_refuses_the_wrong_machine_and_changes_nothing(
    tmp_path: Path, path: str
) -> None:
    programs = tmp_path / "bin"
    put(programs, "uname", "echo armv7l")
    put(programs, "pkg", f"touch {tmp_path}/changed")
    put(programs, "apt-get", f"touch {tmp_path}/changed")
    put(programs, "python3", "case $* in *torch*) exit 1;; esac")
    target = tmp_path / "motley"
    done = sh(ROOT / "deploy" / path, "name-1", programs=programs, MOTLEY_TARGET=str(target))
    assert done.returncode == 1
    assert done.stderr.startswith("install.sh: ")
    assert not target.exists()
    assert not (tmp_path / "changed").exists()
