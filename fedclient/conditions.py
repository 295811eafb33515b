"""When an owner lets a device work: what the platform tells of power, network and load.

| condition | Linux | Termux | macOS |
|---|---|---|---|
| charging | /sys/class/power_supply | termux-battery-status | pmset |
| unmetered | nmcli, else the kind of interface | termux-wifi-connectioninfo | not told |
| idle | /proc/stat, over a second | not told | load average |
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from fedclient.errors import OptionError
from motley.errors import did_you_mean

COMMAND_SECONDS = 10.0
"""For one question to the platform; Termux's programs hang where their app is missing."""
BUSY_ABOVE = 0.25
"""Part of all cores that others may keep busy on an idle machine."""
IDLE_WINDOW = 1.0
"""Seconds over which that is measured. No training runs then, so own work does not count."""

Command = Callable[[Sequence[str]], str]
"""Runs a program and returns what it printed; "" when it is missing, fails or hangs."""


class Condition(str, Enum):
    """What has to hold before a device takes tasks."""

    CHARGING = "charging"
    UNMETERED = "unmetered"
    IDLE = "idle"


@dataclass(frozen=True)
class Reading:
    """What the platform tells of one condition."""

    holds: bool | None
    """None: it does not tell."""
    words: str
    """Why, for the log."""


def parse_conditions(text: str) -> tuple[Condition, ...]:
    """Read `charging,unmetered,idle`; raise OptionError on another word.

    >>> [condition.value for condition in parse_conditions("idle,charging,idle")]
    ['charging', 'idle']
    """
    words = {word.strip() for word in text.split(",") if word.strip()}
    unknown = words - {condition.value for condition in Condition}
    if unknown:
        raise OptionError(
            f"--only-when {min(unknown)!r}: expected some of charging, unmetered, idle, "
            f"with commas between them{did_you_mean(min(unknown), [c.value for c in Condition])}"
        )
    return tuple(condition for condition in Condition if condition.value in words)


def run_command(command: Sequence[str]) -> str:
    """Run a program of the platform; see `Command`."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """The machine as conditions see it."""

    root: Path = Path("/")
    """Where /sys and /proc lie."""
    system: str = sys.platform
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    command: Command = run_command
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    @property
    def is_termux(self) -> bool:
        """Whether this is Android, under Termux."""
        return "TERMUX_VERSION" in self.environment

    async def read(self, condition: Condition) -> Reading:
        """Return what the platform tells now."""
        if condition is Condition.CHARGING:
            return await asyncio.to_thread(self.charging)
        if condition is Condition.UNMETERED:
            return await asyncio.to_thread(self.unmetered)
        return await self.idle()

    # --- power -------------------------------------------------------------------------------

    def charging(self) -> Reading:
        """Tell whether the device runs on outside power; one without a battery does."""
        if self.is_termux:
            return _termux_power(self.command(["termux-battery-status"]))
        if self.system == "darwin":
            return _mac_power(self.command(["pmset", "-g", "batt"]))
        folder = self.root / "sys/class/power_supply"
        if self.system != "linux" or not (self.root / "sys/class").is_dir():
            return Reading(None, f"{self.system} does not tell of its power")
        supplies = [_facts(path) for path in sorted(folder.glob("*"))]
        # A mouse's battery says `Device`.
        ours = [supply for supply in supplies if supply.get("scope") != "Device"]
        for supply in ours:
            if supply.get("type") != "Battery" and supply.get("online") == "1":
                return Reading(True, f"{supply['name']} is plugged in")
        batteries = [supply for supply in ours if supply.get("type") == "Battery"]
        for battery in batteries:
            status = battery.get("status", "unknown").lower()
            # "Not charging": full enough, and on outside power.
            if status in ("charging", "full", "not charging"):
                return Reading(True, f"{battery['name']} is {status}")
        if batteries:
            return Reading(False, f"{batteries[0]['name']} is on its own")
        return Reading(True, "there is no battery")

    # --- network -----------------------------------------------------------------------------

    def unmetered(self) -> Reading:
        """Tell whether the network that packets go out by costs nothing by the byte."""
        if self.is_termux:
            return _termux_wifi(self.command(["termux-wifi-connectioninfo"]))
        if self.system != "linux":
            return Reading(None, f"{self.system} does not tell of its network's price")
        interface = self._way_out()
        if not interface:
            return Reading(False, "there is no network")
        says = self.command(["nmcli", "-g", "GENERAL.METERED", "device", "show", interface])
        word = says.strip().partition(" ")[0]
        if word in ("yes", "no"):
            return Reading(word == "no", f"NetworkManager on {interface}: metered {says.strip()}")
        folder = self.root / "sys/class/net" / interface
        kind = _word(folder / "uevent", "DEVTYPE")
        if kind == "wwan" or interface.startswith(("ppp", "rmnet", "wwan")):
            return Reading(False, f"{interface} is a mobile network")
        if (folder / "wireless").is_dir() or kind == "wlan":
            return Reading(True, f"{interface} is Wi-Fi")
        return Reading(True, f"{interface} is no mobile network")

    def _way_out(self) -> str:
        """Return the interface of the default route; "" without one."""
        with contextlib.suppress(OSError):
            for line in (self.root / "proc/net/route").read_text().splitlines()[1:]:
                words = line.split()
                if len(words) > 7 and words[1] == words[7] == "00000000":
                    return words[0]
        with contextlib.suppress(OSError):
            for line in (self.root / "proc/net/ipv6_route").read_text().splitlines():
                words = line.split()
                everywhere = len(words) > 9 and set(words[0]) == {"0"} and words[1] == "00"
                if everywhere and words[9] != "lo":
                    return words[9]
        return ""

    # --- load --------------------------------------------------------------------------------

    async def idle(self) -> Reading:
        """Tell whether others leave the processor alone; measured while no training runs."""
        if self.system == "darwin":
            part = os.getloadavg()[0] / (os.cpu_count() or 1)
            return _load(part, "by the load of the last minute, own training included")
        before = self._processor_times()
        if before is None:
            return Reading(None, f"{'Android' if self.is_termux else self.system} hides its load")
        await self.sleep(IDLE_WINDOW)
        after = self._processor_times() or before
        whole = after[1] - before[1]
        return _load((after[0] - before[0]) / whole if whole > 0 else 0.0, "over a second")

    def _processor_times(self) -> tuple[int, int] | None:
        """Return (busy, all) ticks of all cores since the start; None where they are hidden."""
        if self.is_termux:
            return None
        try:
            words = (self.root / "proc/stat").read_text().split("\n", 1)[0].split()
            ticks = [int(word) for word in words[1:9]]
        except (OSError, ValueError):
            return None
        if words[0] != "cpu" or len(ticks) < 5:
            return None
        # Fields of proc(5): user, nice, system, idle, iowait, irq, softirq, steal.
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _termux_power(output: str) -> Reading:
    try:
        plugged = str(json.loads(output)["plugged"])
    except (ValueError, KeyError, TypeError):
        return Reading(None, "termux-battery-status says nothing; install the app Termux:API")
    return Reading(plugged != "UNPLUGGED", plugged.lower().replace("_", " "))


def _termux_wifi(output: str) -> Reading:
    try:
        found = json.loads(output)
        state, address = str(found["supplicant_state"]), str(found.get("ip", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Reading(None, "termux-wifi-connectioninfo says nothing; install the app Termux:API")
    connected = state == "COMPLETED" and address not in ("", "0.0.0.0")
    return Reading(connected, "on Wi-Fi" if connected else "not on Wi-Fi")


def _mac_power(output: str) -> Reading:
    first = output.partition("\n")[0]
    if "drawing from" not in first:
        return Reading(None, "pmset says nothing")
    return Reading("AC Power" in first, first.strip())


def _load(part: float, how: str) -> Reading:
    return Reading(part <= BUSY_ABOVE, f"{part:.0%} of the processor is busy, {how}")


def _facts(folder: Path) -> dict[str, str]:
    facts = {"name": folder.name}
    for name in ("type", "online", "status", "scope"):
        with contextlib.suppress(OSError):
            facts[name] = (folder / name).read_text().strip()
    return facts


def _word(path: Path, name: str) -> str:
    """Return the value of `NAME=value` in a file; "" where there is none."""
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition("=")
            if key == name:
                return value
    return ""
