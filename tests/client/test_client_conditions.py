"""What platforms tell of power, network and load; and the daemon that waits for it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_server import FakeServer, run
from structlog.testing import capture_logs

from fedclient.conditions import Condition, Platform, parse_conditions
from fedclient.errors import OptionError
from fedclient.gate import Gate

HEADER = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"


def put(root: Path, path: str, **files: str) -> None:
    """Write files as the kernel shows them."""
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content + "\n")


def linux(root: Path, output: str = "") -> Platform:
    (root / "sys/class").mkdir(parents=True, exist_ok=True)
    return Platform(root=root, system="linux", environment={}, command=lambda _: output)


def route(root: Path, interface: str) -> None:
    line = f"{interface}\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
    put(root, "proc/net", route=HEADER + line)


def answering(answers: dict[str, object], **more: object) -> Platform:
    """A platform of programs that print JSON, or text."""

    def command(words: Sequence[str]) -> str:
        found = answers.get(words[0], "")
        return found if isinstance(found, str) else json.dumps(found)

    return Platform(command=command, **more)  # type: ignore[arg-type]


# --- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("supplies", "holds", "words"),
    [
        ({}, True, "there is no battery"),
        ({"BAT0": {"type": "Battery", "status": "Discharging"}}, False, "BAT0 is on its own"),
        ({"BAT0": {"type": "Battery", "status": "Not charging"}}, True, "BAT0 is not charging"),
        ({"BAT0": {"type": "Battery", "status": "Full"}}, True, "BAT0 is full"),
        (
            {
                "AC": {"type": "Mains", "online": "0"},
                "BAT0": {"type": "Battery", "status": "Unknown"},
            },
            False,
            "BAT0 is on its own",
        ),
        (
            {
                "BAT0": {"type": "Battery", "status": "Discharging"},
                "usb": {"type": "USB", "online": "1"},
            },
            True,
            "usb is plugged in",
        ),
        (
            {"mouse": {"type": "Battery", "status": "Discharging", "scope": "Device"}},
            True,
            "there is no battery",
        ),
    ],
)
def test_linux_tells_of_its_power(tmp_path, supplies, holds, words):
    for name, facts in supplies.items():
        put(tmp_path, f"sys/class/power_supply/{name}", **facts)
    reading = linux(tmp_path).charging()
    assert (reading.holds, reading.words) == (holds, words)


@pytest.mark.parametrize(
    ("plugged", "holds"), [("PLUGGED_AC", True), ("PLUGGED_USB", True), ("UNPLUGGED", False)]
)
def test_termux_tells_of_its_power(plugged, holds):
    answer = {"health": "GOOD", "percentage": 80, "plugged": plugged, "status": "FULL"}
    termux = {"environment": {"TERMUX_VERSION": "0.118"}}
    assert answering({"termux-battery-status": answer}, **termux).charging().holds is holds
    silent = answering({}, **termux).charging()
    assert silent.holds is None
    assert "Termux:API" in silent.words


def test_macos_tells_of_its_power():
    mac = {"system": "darwin", "environment": {}}
    for source, holds in (("AC Power", True), ("Battery Power", False)):
        answer = f"Now drawing from '{source}'\n -InternalBattery-0 (id=1)\t80%; charged\n"
        assert answering({"pmset": answer}, **mac).charging().holds is holds
    assert answering({}, **mac).charging().holds is None


# --- network -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "holds"),
    [("yes\n", False), ("no\n", True), ("yes (guessed)\n", False), ("no (guessed)\n", True)],
)
def test_networkmanager_has_the_first_word(tmp_path, output, holds):
    route(tmp_path, "wlan0")
    asked: list[Sequence[str]] = []

    def command(words: Sequence[str]) -> str:
        asked.append(words)
        return output

    platform = Platform(root=tmp_path, system="linux", environment={}, command=command)
    assert platform.unmetered().holds is holds
    assert asked == [["nmcli", "-g", "GENERAL.METERED", "device", "show", "wlan0"]]


@pytest.mark.parametrize(
    ("interface", "uevent", "output", "holds"),
    [
        ("eth0", "INTERFACE=eth0", "", True),
        ("wlan0", "DEVTYPE=wlan\nINTERFACE=wlan0", "unknown\n", True),
        ("wwan0", "DEVTYPE=wwan", "", False),
        ("ppp0", "INTERFACE=ppp0", "", False),
        ("usb0", "DEVTYPE=wwan", "", False),
    ],
)
def test_without_networkmanager_the_kind_of_interface_decides(
    tmp_path, interface, uevent, output, holds
):
    route(tmp_path, interface)
    put(tmp_path, f"sys/class/net/{interface}", uevent=uevent)
    reading = linux(tmp_path, output).unmetered()
    assert reading.holds is holds
    assert interface in reading.words


def test_the_way_out_may_be_ipv6_or_missing(tmp_path):
    put(tmp_path, "proc/net", route=HEADER.strip())
    assert linux(tmp_path).unmetered().words == "there is no network"
    zeros = "0" * 32
    lines = [
        f"{zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo",
        f"{zeros} 00 {zeros} 00 fe80{'0' * 28} 00000400 00000001 00000000 00000003    wwan0",
    ]
    put(tmp_path, "proc/net", ipv6_route="\n".join(lines))
    assert linux(tmp_path).unmetered().words == "wwan0 is a mobile network"


@pytest.mark.parametrize(
    ("answer", "holds"),
    [
        ({"supplicant_state": "COMPLETED", "ip": "192.168.1.7", "ssid": "home"}, True),
        ({"supplicant_state": "COMPLETED", "ip": "0.0.0.0"}, False),
        ({"supplicant_state": "DISCONNECTED", "ip": "0.0.0.0"}, False),
        ({"API_ERROR": "no permission"}, None),
    ],
)
def test_termux_tells_of_its_wifi(answer, holds):
    termux = {"environment": {"TERMUX_VERSION": "0.118"}}
    assert answering({"termux-wifi-connectioninfo": answer}, **termux).unmetered().holds is holds


# --- load ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("busy", "holds"), [(25, True), (26, False)])
def test_an_idle_machine_has_three_quarters_to_spare(tmp_path, busy, holds):
    """user nice system idle iowait irq softirq steal, then guests, which user counts already."""
    put(tmp_path, "proc", stat="cpu 1000 0 500 8000 100 0 0 0 900 0\ncpu0 1 2 3")

    async def a_second_passes(seconds: float) -> None:
        assert seconds == 1.0
        after = f"cpu {1000 + busy - 5} 1 {500 + 2} {8000 + 90 - busy} 110 1 1 0 900 0"
        put(tmp_path, "proc", stat=after)

    platform = Platform(root=tmp_path, system="linux", environment={}, sleep=a_second_passes)
    reading = asyncio.run(platform.idle())
    assert reading.holds is holds
    assert reading.words == f"{busy}% of the processor is busy, over a second"


def test_what_a_platform_does_not_tell_is_refused_at_the_start(tmp_path):
    termux = Platform(environment={"TERMUX_VERSION": "0.118"}, command=lambda _: "")
    with pytest.raises(OptionError, match="--only-when idle: Android hides its load"):
        asyncio.run(Gate([Condition.IDLE], termux).check())
    windows = Platform(root=tmp_path, system="win32", environment={}, command=lambda _: "")
    for condition in (Condition.CHARGING, Condition.UNMETERED, Condition.IDLE):
        with pytest.raises(OptionError, match="leave the condition out"):
            asyncio.run(Gate([condition], windows).check())
    asyncio.run(Gate([], windows).check())


def test_another_word_is_refused():
    assert parse_conditions("") == ()
    with pytest.raises(OptionError, match="'plugged': expected some of charging"):
        parse_conditions("charging,plugged")


# --- the gate and the daemon ---------------------------------------------------------------------


def test_the_gate_says_once_that_it_waits_and_once_that_it_goes_on(tmp_path):
    battery = "sys/class/power_supply/BAT0"
    put(tmp_path, battery, type="Battery", status="Discharging")
    looks = 0

    async def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            put(tmp_path, battery, status="Charging")
        if looks == 5:
            put(tmp_path, battery, status="Discharging")

    left = 0

    async def leave() -> None:
        nonlocal left
        left += 1

    async def body():
        gate = Gate([Condition.CHARGING], linux(tmp_path), sleep=sleep)
        with capture_logs() as logs:
            await gate.opened(leave)
        assert (looks, left) == (3, 1)
        assert [(entry["event"], entry.get("charging")) for entry in logs] == [
            ("conditions_wait", "BAT0 is on its own"),
            ("conditions_hold", None),
        ]
        await gate.shut()
        assert looks == 5

    asyncio.run(body())


def test_a_gate_without_conditions_is_open_and_stays_so():
    async def never() -> None:
        raise AssertionError

    async def body():
        gate = Gate(())
        await gate.opened(never)
        shut = asyncio.create_task(gate.shut())
        await asyncio.sleep(0)
        assert not shut.done()
        shut.cancel()

    asyncio.run(body())


@pytest.mark.processes
def test_a_daemon_works_while_its_conditions_hold(tmp_path, linear_broadcast):
    """The machine's files are under a folder; else the daemon and its server are real."""
    from test_client_daemon import plan
    from test_client_process import ready_state, start_command

    machine = tmp_path / "machine"
    battery = "sys/class/power_supply/BAT0"
    put(machine, battery, type="Battery", status="Discharging")
    code = (
        "import sys; from pathlib import Path; import fedclient.gate as gate\n"
        f"gate.LOOK_SECONDS = 0.05; made = gate.Platform\n"
        f"gate.Platform = lambda: made(root=Path({str(machine)!r}))\n"
        "from fedclient.cli import main; main()"
    )

    async def body():
        server = await FakeServer(hold=0.05).start()
        words = start_command(server.address, tmp_path / "s", "--only-when", "charging")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, *words[3:], stderr=asyncio.subprocess.PIPE,
            env={**os.environ},
        )  # fmt: skip
        assert process.stderr is not None
        events: list[dict[str, object]] = []

        async def wait_for(event: str) -> None:
            events.append({"event": ""})
            while events[-1]["event"] != event:
                line = await asyncio.wait_for(process.stderr.readline(), 30)
                assert line, events
                events.append(json.loads(line))

        await wait_for("conditions_wait")
        assert events[-1]["charging"] == "BAT0 is on its own"
        assert not server.check_ins
        put(machine, battery, status="Charging")
        await wait_for("conditions_hold")
        await server.until(lambda: server.check_ins)

        task = server.offer(linear_broadcast, plan=plan())
        await server.until(lambda: server.down_offsets)
        put(machine, battery, status="Discharging")
        later = server.offer(linear_broadcast, plan=plan(), task_id="later")
        await server.until(lambda: task.task_id in server.updates)
        await wait_for("conditions_wait")
        await server.until(lambda: server.check_ins[-1].leaving)
        assert later.task_id not in server.updates
        count = len(server.check_ins)
        put(machine, battery, status="Full")
        await server.until(lambda: later.task_id in server.updates)
        assert not server.check_ins[count].leaving, "one goodbye, then a check-in"
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0

    ready_state(tmp_path / "s", "")
    run(body)
