"""The `fedclient` command as a process: exit statuses, signals, memory, what it imports."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from fake_server import FakeServer, run

pytestmark = pytest.mark.processes

COMMAND = [sys.executable, "-m", "fedclient.cli"]


def start_command(server: str, state: Path, *more: str) -> list[str]:
    return [
        *COMMAND, "start", "--server", server, "--name", "phone-1", "--data", "synthetic",
        "--workload", "linear=linear_workload:Linear", "--state", str(state), "--threads", "1",
        "--insecure", "--log-format", "json", *more,
    ]  # fmt: skip


def ready_state(state: Path, address: str) -> None:
    """Keep a measurement, so that the daemon need not start the measuring process."""
    from fedclient.device import Device
    from fedclient.options import ClientOptions
    from fedclient.profile import Measurement

    options = ClientOptions(
        server=address, name="phone-1", data="synthetic", state=state, threads=1,
        workloads={"linear": "linear_workload:Linear"},
    )  # fmt: skip

    async def measured(*_: object) -> Measurement:
        return Measurement(workloads={"linear": 3})

    state.mkdir(parents=True)
    asyncio.run(Device(options, state / "profile.json", measure=measured).load())
    (state / "session").write_text('{"layout": 1, "name": "phone-1", "session": "s1"}')


async def started(command: list[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)


def test_sigterm_leaves_cleanly_and_the_idle_daemon_is_small(tmp_path):
    async def body():
        server = await FakeServer(hold=5.0).start()
        process = await started(start_command(server.address, tmp_path / "s"))
        await server.until(lambda: server.check_ins)
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = next(int(w.split()[1]) for w in status.splitlines() if w.startswith("VmRSS"))
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(process.communicate(), 3.0)
        print(f"\nidle daemon: {resident / 1024:.1f} MiB resident", file=sys.stderr)
        assert process.returncode == 0, log.decode()
        assert time.monotonic() - begun < 3.0
        assert server.check_ins[-1].leaving
        assert resident < 80 * 1024
        assert "libtorch" not in maps
        events = [json.loads(line)["event"] for line in log.decode().splitlines()]
        assert "device_measured" in events
        assert events[-1] == "client_left"

    run(body)


def test_sigterm_amid_training_ends_the_training_process(tmp_path, linear_broadcast):
    mark = tmp_path / "mark"
    mark.write_text("hang")

    async def body():
        server = await FakeServer().start()
        from test_client_daemon import plan

        server.offer(linear_broadcast, plan=plan())
        process = await started(
            [*start_command(server.address, tmp_path / "s"), "--data", f"x?mark={mark}"]
        )
        await server.until(lambda: not mark.exists())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 3.0)
        assert process.returncode == 0
        assert children
        assert not any(Path(f"/proc/{child}").exists() for child in children)

    ready_state(tmp_path / "s", "")
    run(body)


def test_the_training_process_does_not_outlive_a_killed_daemon(tmp_path, linear_broadcast):
    mark = tmp_path / "mark"
    mark.write_text("hang")

    async def body():
        server = await FakeServer().start()
        from test_client_daemon import plan

        server.offer(linear_broadcast, plan=plan())
        process = await started(
            [*start_command(server.address, tmp_path / "s"), "--data", f"x?mark={mark}"]
        )
        await server.until(lambda: not mark.exists())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        process.kill()
        await process.communicate()
        await server.until(lambda: not any(alive(int(child)) for child in children), 5.0)

    ready_state(tmp_path / "s", "")
    run(body)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("status", "words"),
    [("ALREADY_EXISTS", "is connected already"), ("FAILED_PRECONDITION", "protocol version 2")],
)
def test_a_refusal_ends_with_status_3(tmp_path, status, words):
    async def body():
        refusal = (grpc.StatusCode[status], f"a client of that name {words}")
        server = await FakeServer(refuse=refusal).start()
        process = await started(start_command(server.address, tmp_path / "s"))
        _, log = await asyncio.wait_for(process.communicate(), 20.0)
        last = log.decode().splitlines()[-1]
        assert process.returncode == 3
        assert last.startswith("fedclient: ")
        assert words in last
        assert "Traceback" not in log.decode()

    ready_state(tmp_path / "s", "")
    run(body)


def test_a_second_daemon_on_a_state_directory_ends_with_status_4(tmp_path):
    from fedclient.state import StateDirectory

    state = StateDirectory(tmp_path / "s")
    state.open("phone-1")
    done = run_cli(start_command("127.0.0.1:9", tmp_path / "s"))
    assert done.returncode == 4
    assert f"in use by another fedclient (process {os.getpid()})" in done.stderr
    state.close()


def run_cli(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--name", "bad name"], "expected 1 to 64 letters"),
        (["--server", "nowhere"], "expected HOST:PORT"),
        (["--label", "room"], "expected KEY=VALUE"),
        (["--memory-limit", "much"], "expected a size such as 512M"),
        (["--workload", "linear"], "expected NAME=module:object"),
        (["--data", "x?broken"], "--data"),
        (["--data", "/card/caf\udce9"], "expected a name in UTF-8"),
        (["--state", "/tmp/caf\udce9"], "expected a name in UTF-8"),
    ],
)
def test_usage_errors_end_with_status_2(tmp_path, more, words):
    from typer.testing import CliRunner

    from fedclient.cli import app
    from fedclient.errors import OptionError

    command = [*start_command("127.0.0.1:9", tmp_path / "s"), *more][len(COMMAND) :]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, OptionError)
    assert result.exception.exit_status == 2
    assert words in str(result.exception)


def test_a_working_folder_that_no_message_can_name_is_refused(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from fedclient.cli import app
    from fedclient.errors import OptionError

    odd = tmp_path / "caf\udce9"
    odd.mkdir()
    monkeypatch.chdir(odd)
    command = start_command("127.0.0.1:9", tmp_path / "s")[len(COMMAND) :]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, OptionError)
    assert "the folder it is started in" in str(result.exception)


def test_the_help_says_when_to_give_threads():
    from typer.main import get_command

    from fedclient.cli import app

    start = get_command(app).commands["start"]  # type: ignore[attr-defined]
    (threads,) = (option for option in start.params if option.name == "threads")
    assert "Give a number where a run's result must repeat" in threads.help


def test_a_device_that_has_not_joined_is_told_how(tmp_path):
    command = start_command("127.0.0.1:9", tmp_path / "s")
    command.remove("--insecure")
    done = run_cli(command)
    assert done.returncode == 2
    assert "fedclient join TOKEN --name phone-1" in done.stderr
    assert "--insecure" in done.stderr


def test_a_broken_mapping_is_said_at_start(tmp_path):
    command = start_command("127.0.0.1:9", tmp_path / "s", "--workload", "mine=no_module:X")
    done = run_cli(command)
    assert done.returncode == 4
    assert "no_module" in done.stderr.splitlines()[-1]


def test_models_are_listed(tmp_path):
    from fedclient.disk import Disk
    from fedclient.models import FinishedModel, record

    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "demo-r1.motley").write_bytes(b"packed")
    finished = FinishedModel(
        run_id="r1", run_name="demo", workload="linear", algorithm="fedavg", rounds=3,
        file="demo-r1.motley", size=6, metrics={"accuracy": 0.5},
    )  # fmt: skip
    record(folder / "demo-r1.motley", finished, Disk())
    done = run_cli([*COMMAND, "models", "--state", str(tmp_path), "--json"])
    (listed,) = json.loads(done.stdout)
    assert listed["metrics"] == {"accuracy": 0.5}
    assert listed["path"] == str(folder / "demo-r1.motley")
    table = run_cli([*COMMAND, "models", "--state", str(tmp_path)]).stdout
    assert "accuracy 0.5" in table
    assert str(folder) in table.splitlines()


def test_privacy_lists_who_was_started_and_not_who_only_joined(tmp_path, monkeypatch):
    from fedclient.state import StateDirectory

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    clients = tmp_path / "motley" / "clients"
    (clients / "joined" / "identity").mkdir(parents=True)
    assert "no client was started yet" in run_cli([*COMMAND, "privacy"]).stdout
    state = StateDirectory(clients / "started")
    state.open("started")
    state.close()
    (listed,) = json.loads(run_cli([*COMMAND, "privacy", "--json"]).stdout)
    assert listed["state"] == str(clients / "started")
    assert (listed["tasks"], listed["spent_epsilon"]) == (0, 0.0)
    done = run_cli([*COMMAND, "privacy", "--state", str(clients / "joined")])
    assert done.returncode != 0
    assert "no client was started with state directory" in done.stderr


def test_daemon_and_worker_do_without_rich():
    code = (
        "import sys, fedclient.cli, fedclient.daemon, fedclient.worker\n"
        "import motley.execution.executor\n"
        "assert 'rich' not in sys.modules\n"
        "import rich, structlog.dev\n"  # and commands can have it
        "assert structlog.dev.rich is None\n"
    )
    done = run_cli([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr


def test_daemon_and_worker_import_what_they_use():
    modules = [
        "cli",
        "daemon",
        "desk",
        "connection",
        "device",
        "cli_export",
        "models",
        "tables",
        "take_home",
        "runner",
        "outbox",
        "state",
        "profile",
        "profile_view",
        "transfer.download",
        "transfer.upload",
        "personal",
        "privacy",
        "privacy_view",
        "protocol",
        "worker",
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module('fedclient.' + name)\n"
        "from fedclient.connection import algorithm_versions\n"
        "algorithm_versions()\n"
        "bad = [m for m in sys.modules if m in ('torch', 'cryptography')"
        " or m.startswith(('motley.execution', 'motley.training', 'motley.workloads'))]\n"
        "assert not bad, bad\n"
    )
    done = run_cli([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
