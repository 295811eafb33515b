"""Who is connected, in memory: sessions, versions and profiles as last said."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedserver.errors import NameInUseError

PRESENT_SECONDS = 90.0
"""A client counts as there for so long after its last word: two long polls."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Versions and abilities that a client said at its check-in."""

    protocol: int
    wire: int
    algorithms: Mapping[str, int]
    workloads: Mapping[str, int]
    encodings: tuple[str, ...]
    software: str = ""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a device measured of itself; sizes in bytes, speeds per second."""

    cores: int = 0
    memory_bytes: int = 0
    storage_free_bytes: int = 0
    accelerator: str = ""
    architecture: str = ""
    probe_gflops: float = 0.0
    download_bytes_per_second: float = 0.0
    upload_bytes_per_second: float = 0.0
    threads: int = 1
    tier: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A connected client."""

    name: str
    session: str
    capabilities: Capabilities
    profile: Profile
    seen: float
    """Monotonic seconds of its last word."""
    polling: bool = False
    """Whether a check-in of it is being held right now."""


class Presence:
    """Connected clients by name; safe to use from the event loop and the database thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrivals: dict[str, Arrival] = {}

    def arrive(self, arrival: Arrival) -> bool:
        """Note a check-in; return whether anything but the time is new.

        Raises:
            NameInUseError: another device of this name spoke within `PRESENT_SECONDS`.
        """
        with self._lock:
            before = self._arrivals.get(arrival.name)
            here = before is not None and arrival.seen - before.seen < PRESENT_SECONDS
            if before is not None and here and before.session != arrival.session:
                raise NameInUseError(
                    f"a client called {arrival.name!r} is connected already; give this device "
                    f"another --name, or stop the other one"
                )
            self._arrivals[arrival.name] = arrival
            return (
                before is None
                or not here
                or (before.session, before.capabilities, before.profile)
                != (arrival.session, arrival.capabilities, arrival.profile)
            )

    def touch(self, name: str, session: str, now: float) -> None:
        """Note a sign of life outside a check-in, e.g. a frame of an upload."""
        with self._lock:
            before = self._arrivals.get(name)
            if before is not None and before.session == session:
                self._arrivals[name] = Arrival(**{**vars(before), "seen": now})

    def leave(self, name: str, session: str) -> None:
        """Forget a client that said goodbye or whose connection broke while it was waiting."""
        with self._lock:
            before = self._arrivals.get(name)
            if before is not None and before.session == session:
                del self._arrivals[name]

    def get(self, name: str) -> Arrival | None:
        """Return what a client last said."""
        with self._lock:
            return self._arrivals.get(name)

    def here(self, now: float) -> dict[str, Arrival]:
        """Return the clients that are there, by name, in order of name."""
        with self._lock:
            return {
                name: self._arrivals[name]
                for name in sorted(self._arrivals)
                if now - self._arrivals[name].seen < PRESENT_SECONDS
            }
