"""What the owner asked for on the command line, checked."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedclient.conditions import Condition
from fedclient.errors import OptionError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""The pattern that run files use for names too."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)I?B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """One daemon's settings."""

    server: str
    """`HOST:PORT` of the server's client port."""
    name: str
    data: str
    """The text after `--data`; workloads read it."""
    state: Path
    """The state directory."""
    workloads: Mapping[str, str] = field(default_factory=dict)
    """`module:object` by workload name, as the owner mapped them."""
    tier: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    threads: int = 0
    """Training threads; 0 shares the cores among the clients of this machine. Who needs results
    that repeat gives a number: the share depends on which clients run when a run starts."""
    memory_limit: int = 0
    """Bytes of data the training process may hold; 0 for no limit."""
    device: str = "cpu"
    insecure: bool = False
    """Whether to connect without TLS and certificates."""
    idle_seconds: float = 600.0
    """Idle time after which the training process is ended."""
    only_when: tuple[Condition, ...] = ()
    """What has to hold before a task is taken."""
    privacy_budget: str = ""
    """`EPSILON,DELTA` that all runs together may spend; `none`: no bound; "": as it was."""


def check_name(name: str) -> str:
    """Return a client's name; raise OptionError when it does not fit the pattern."""
    if not NAME.fullmatch(name):
        raise OptionError(
            f"--name {name!r}: expected 1 to 64 letters, digits, '.', '_' or '-', "
            f"beginning with a letter or digit"
        )
    return name


def check_utf8(option: str, given: str) -> str:
    """Return an option's text, such as a path; raise OptionError where no message can hold it."""
    try:
        given.encode()
    except UnicodeEncodeError:
        shown = given.encode(errors="backslashreplace").decode()
        raise OptionError(
            f"{option} {shown!r}: expected a name in UTF-8, this one has other bytes; rename it, "
            f"or make a link with such a name and give that"
        ) from None
    return given


def check_server(address: str) -> str:
    """Return `HOST:PORT`; raise OptionError on another form."""
    host, _, port = address.rpartition(":")
    is_number = port.isascii() and port.isdigit()  # "²" alone is a digit too, and no number
    if not host or not is_number or not 0 < int(port) < 65536:
        raise OptionError(f"--server {address!r}: expected HOST:PORT, e.g. 192.168.1.10:9400")
    return address


def parse_size(text: str) -> int:
    """Return bytes of a size such as `512M` or `2G` (powers of 1024).

    >>> parse_size("1.5K")
    1536
    """
    found = _SIZE.fullmatch(text.strip())
    if not found or not (size := int(float(found[1]) * _UNITS[found[2].upper()])):
        raise OptionError(f"--memory-limit {text!r}: expected a size such as 512M or 2G")
    return size


def check_memory_limit(text: str, platform: str = sys.platform) -> int:
    """Return the limit in bytes, 0 for none; raise OptionError where it cannot be kept."""
    if not text:
        return 0
    if platform != "linux":
        raise OptionError(
            f"--memory-limit works on Linux alone (RLIMIT_DATA), this is {platform}; "
            f"leave the option out"
        )
    return parse_size(text)


def parse_labels(pairs: Sequence[str]) -> dict[str, str]:
    """Read `K=V` options; raise OptionError on another form."""
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise OptionError(f"--label {pair!r}: expected KEY=VALUE")
        labels[key] = value
    return labels


def clients_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the directory that holds the default state directories, one for each name."""
    base = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "motley" / "clients"
