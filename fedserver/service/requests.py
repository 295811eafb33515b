"""Clients' messages, checked and translated: what they say ends up in records."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from fedserver.errors import ProtocolError, VersionError
from fedserver.rounds.presence import Arrival, Capabilities, Profile
from motley import __version__
from motley.wire.stubs import federation_pb2

PROTOCOL = 1
"""Version of the services in proto/motley/v1."""
LONGEST_NAME = 64
LONGEST_MESSAGE = 2000
LONGEST_WORDS = 128
"""Characters of what a device says for people alone: longer words are cut, not refused."""
MOST_ENTRIES = 64
"""Metrics, labels, workloads ... that one message may carry."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def checked_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics; raise ProtocolError on too many, too long names, or values not finite."""
    _check_entries("metrics", metrics)
    bad = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    if bad:
        raise ProtocolError(f"metrics {', '.join(bad)} are not finite; expected plain numbers")
    return dict(metrics)


def checked_seconds(seconds: float) -> float:
    """Return a duration; raise ProtocolError when it is none."""
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ProtocolError(f"a duration of {seconds} seconds; expected 0 or more")
    return seconds


def _measured(value: float) -> float:
    """Return what a device measured of itself; 0, which is not known, for what cannot be."""
    return value if math.isfinite(value) and value >= 0 else 0.0


def _check_entries(what: str, entries: Mapping[Any, object]) -> None:
    texts = [text for pair in entries.items() for text in pair if isinstance(text, str)]
    too_long = any(len(text) > LONGEST_NAME for text in texts)
    if len(entries) > MOST_ENTRIES or too_long:
        raise ProtocolError(
            f"{what}: expected up to {MOST_ENTRIES} entries with names of up to {LONGEST_NAME} "
            f"characters"
        )


def arrival_of(request: federation_pb2.CheckInRequest, now: float, poll: int) -> Arrival:
    """Translate a check-in; raise ProtocolError or VersionError on what cannot be.

    Names, by which runs choose, are refused when they are too long; words for people are cut, and
    measurements that are no numbers count as not known.
    """
    if not _NAME.fullmatch(request.name):
        raise ProtocolError(
            f"client name {request.name!r}: expected 1 to 64 letters, digits, '.', '_' or '-'"
        )
    if not request.session:
        raise ProtocolError("a check-in names its session")
    caps, profile = request.capabilities, request.profile
    for what, entries in (
        ("labels", profile.labels),
        ("libraries", profile.libraries),
        ("algorithms", caps.algorithms),
        ("workloads", caps.workloads),
        ("encodings", dict(enumerate(caps.encodings))),
    ):
        _check_entries(what, entries)
    if len(profile.tier) > LONGEST_NAME:
        raise ProtocolError(f"tier: expected a name of up to {LONGEST_NAME} characters")
    software = caps.software[:LONGEST_WORDS]
    if caps.protocol != PROTOCOL:
        raise VersionError(
            f"the client speaks protocol {caps.protocol}, this server {PROTOCOL}; install the same "
            f"version of motley-fl on both (server {__version__}, client {software})"
        )
    return Arrival(
        name=request.name,
        session=request.session[:LONGEST_NAME],
        seen=now,
        poll=poll,
        capabilities=Capabilities(
            protocol=caps.protocol,
            wire=caps.wire,
            algorithms=dict(caps.algorithms),
            workloads=dict(caps.workloads),
            encodings=tuple(caps.encodings),
            software=software,
        ),
        profile=Profile(
            cores=profile.cores,
            memory_bytes=profile.memory_bytes,
            storage_free_bytes=profile.storage_free_bytes,
            accelerator=profile.accelerator[:LONGEST_WORDS],
            architecture=profile.architecture[:LONGEST_WORDS],
            probe_gflops=_measured(profile.probe_gflops),
            download_bytes_per_second=_measured(profile.download_bytes_per_second),
            upload_bytes_per_second=_measured(profile.upload_bytes_per_second),
            threads=max(1, profile.threads),
            tier=profile.tier,
            labels=dict(profile.labels),
            libraries=dict(profile.libraries),
        ),
    )
