"""Who is connected, in memory: sessions, versions and profiles as last said."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedserver.errors import NameInUseError

PRESENT_SECONDS = 90.0
"""A client counts as there for so long after its last word: two long polls."""

FORGET_SECONDS = 24 * 3600.0
FORGET_ABOVE = 1000
MOST_SHARED = 100
"""Different capabilities that are kept once for all clients that say the same."""
FORGET_EVERY = 600.0
"""Seconds from one look at all who were away for a day to the next."""


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
    poll: int = 0
    """Number of the check-in that said this."""
    free: bool = False
    """Whether the connection broke: still expected back, but another device may take the name."""


class Presence:
    """Connected clients by name; safe to use from the event loop and the database thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrivals: dict[str, Arrival] = {}
        self._looked = float("-inf")
        self._capabilities: dict[str, Capabilities] = {}

    def arrive(self, arrival: Arrival) -> bool:
        """Note a check-in; return whether anything but the time is new.

        Raises:
            NameInUseError: another device of this name spoke within `PRESENT_SECONDS`.
        """
        with self._lock:
            before = self._arrivals.get(arrival.name)
            here = before is not None and arrival.seen - before.seen < PRESENT_SECONDS
            held = before is not None and here and not before.free
            if before is not None and held and before.session != arrival.session:
                raise NameInUseError(
                    f"a client called {arrival.name!r} is connected already; give this device "
                    f"another --name, or stop the other one"
                )
            self._forget(arrival.seen)
            if before is not None and _says_the_same(before, arrival):
                # Kept once: what a daemon says of itself is most of what it takes here.
                said = {"capabilities": before.capabilities, "profile": before.profile}
                arrival = Arrival(**{**vars(arrival), **said})
                self._arrivals[arrival.name] = arrival
                return not here
            shared = self._shared(arrival.capabilities)
            self._arrivals[arrival.name] = Arrival(**{**vars(arrival), "capabilities": shared})
            return True

    def touch(self, name: str, session: str, now: float) -> None:
        """Note a sign of life outside a check-in, e.g. a frame of an upload."""
        with self._lock:
            before = self._arrivals.get(name)
            if before is not None and before.session == session:
                self._arrivals[name] = Arrival(**{**vars(before), "seen": now, "free": False})

    def leave(self, name: str, session: str) -> bool:
        """Forget a client that said goodbye; return whether it was known."""
        with self._lock:
            before = self._arrivals.get(name)
            if before is None or before.session != session:
                return False
            del self._arrivals[name]
            return True

    def forget(self, name: str) -> None:
        """Forget a client that was shut out."""
        with self._lock:
            self._arrivals.pop(name, None)

    def release(self, arrival: Arrival) -> None:
        """Free the name of a client whose connection broke while that check-in was held.

        It counts as here for `PRESENT_SECONDS` more: a blip must not change who takes part.
        """
        with self._lock:
            now = self._arrivals.get(arrival.name)
            if now is not None and now.poll == arrival.poll:
                self._arrivals[arrival.name] = Arrival(**{**vars(now), "free": True})

    def _shared(self, said: Capabilities) -> Capabilities:
        """Return the same object for all clients that can do the same: most can."""
        if len(self._capabilities) >= MOST_SHARED:
            self._capabilities.clear()
        return self._capabilities.setdefault(repr(said), said)

    def _forget(self, now: float) -> None:
        """Drop who has been away for a day, so that names cannot fill the memory."""
        if len(self._arrivals) > FORGET_ABOVE and now - self._looked > FORGET_EVERY:
            self._looked = now
            old = [n for n, a in self._arrivals.items() if now - a.seen > FORGET_SECONDS]
            for name in old:
                del self._arrivals[name]

    def get(self, name: str) -> Arrival | None:
        """Return what a client last said."""
        with self._lock:
            return self._arrivals.get(name)

    def seen(self) -> dict[str, float]:
        """Return the monotonic seconds of each known client's last word, by name."""
        with self._lock:
            return {name: arrival.seen for name, arrival in self._arrivals.items()}

    def here(self, now: float) -> dict[str, Arrival]:
        """Return the clients that are there, by name, in order of name."""
        with self._lock:
            return {
                name: self._arrivals[name]
                for name in sorted(self._arrivals)
                if now - self._arrivals[name].seen < PRESENT_SECONDS
            }


def _says_the_same(before: Arrival, arrival: Arrival) -> bool:
    said = (before.session, before.capabilities, before.profile)
    return said == (arrival.session, arrival.capabilities, arrival.profile)
