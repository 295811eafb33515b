"""Hostile inputs for a live server: what a stranger, or a client gone bad, can send.

An input is a function that sends something and returns the status it was answered with. Bytes
are sent raw, without the stubs' own checks. Certificates and tokens come in with
`hostile_identity.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hostile_sender import Sender, frame

from motley.wire.stubs import federation_pb2


@dataclass(frozen=True)
class Input:
    """One thing to send."""

    kind: str
    send: Callable[[Sender], str]
    allowed: frozenset[str]
    """Statuses that are right."""


# --- mutation ------------------------------------------------------------------------------------


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return bytes that were valid once: flipped, cut, doubled, spliced or made longer."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.randint(1, 20))
        how = rng.randrange(6)
        if how == 0 and data:
            at = rng.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif how == 1:
            data = data[:at]
        elif how == 2:
            data = data[:to] + data[at:]
        elif how == 3:
            data = data[:at] + rng.randbytes(rng.randint(1, 40)) + data[at:]
        elif how == 4:
            data = data + data[:at]
        else:
            data = data[:at] + b"\xff" * 9 + b"\x7f" + data[to:]
    return data


# --- the inputs ----------------------------------------------------------------------------------

REFUSED = frozenset(
    {
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "FAILED_PRECONDITION",
        "ALREADY_EXISTS",
        "DATA_LOSS",
        "OUT_OF_RANGE",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "RESOURCE_EXHAUSTED",
        "UNIMPLEMENTED",
    }
)
STILL_VALID = REFUSED | {"OK", "DEADLINE_EXCEEDED"}
"""A mutation may leave a valid message: an unknown field, another metric. A check-in without a
task in hand is held until the caller's deadline."""
CLOSED = frozenset({"connection closed", "connection open or reset"})


def exactly(*names: str) -> frozenset[str]:
    """Return the statuses that are right."""
    return frozenset(names)


def _mutations(rng: random.Random) -> list[Input]:
    seed = rng.randrange(2**63)

    def check_in(s: Sender) -> str:
        return s.unary("CheckIn", mutated(s.check_in(), random.Random(seed)))

    def download(s: Sender) -> str:
        data = s.download_request(s.task_id, s.digest)
        return s.download(mutated(data, random.Random(seed)))

    def opening(s: Sender) -> str:
        data = s.opening(s.task_id, sha256=bytes(32), size=100, metrics={"loss": 1.0})
        return s.upload([mutated(data, random.Random(seed)), frame(b"x" * 100)])

    def frames(s: Sender) -> str:
        local = random.Random(seed)
        first = s.opening(s.task_id, sha256=local.randbytes(32), size=300)
        return s.upload([first, mutated(frame(local.randbytes(300)), local)])

    def report(s: Sender) -> str:
        result = federation_pb2.Result(metrics={"a": 1.0}, seconds=1.0)
        return s.unary("Report", mutated(s.report(s.task_id, result=result), random.Random(seed)))

    def renew(s: Sender) -> str:
        request = federation_pb2.RenewRequest(signing_request=random.Random(seed).randbytes(200))
        return s.unary("Renew", mutated(request.SerializeToString(), random.Random(seed)))

    def noise(s: Sender) -> str:
        local = random.Random(seed)
        method = local.choice(("CheckIn", "Report", "Renew"))
        return s.unary(method, local.randbytes(local.randint(0, 400)))

    return [
        Input("mutated check-in", check_in, STILL_VALID),
        Input("mutated download", download, STILL_VALID),
        Input("mutated opening of an upload", opening, STILL_VALID),
        Input("mutated frame", frames, STILL_VALID),
        Input("mutated report", report, STILL_VALID),
        Input("mutated renewal", renew, STILL_VALID),
        Input("random bytes as a message", noise, STILL_VALID),
    ]


def _foreign(rng: random.Random) -> list[Input]:
    """Tasks and payloads of others, and such as never were."""
    unknown = f"{rng.randrange(16**8):08x}-00001-0-train-mallory"
    digest = rng.randbytes(32)
    failure = federation_pb2.Failure(code="crash", message="x" * 50, permanent=True)
    not_found = exactly("NOT_FOUND")
    return [
        Input(
            "upload for another's task",
            lambda s: s.upload([s.opening(s.victim_task, sha256=digest, size=10)]),
            not_found,
        ),
        Input(
            "upload for no task",
            lambda s: s.upload([s.opening(unknown, sha256=digest, size=10)]),
            not_found,
        ),
        Input(
            "download of another's task",
            lambda s: s.download(s.download_request(s.victim_task, s.digest)),
            not_found,
        ),
        Input(
            "download of another payload",
            lambda s: s.download(s.download_request(s.task_id, digest)),
            not_found,
        ),
        Input(
            "report of another's failure",
            lambda s: s.unary("Report", s.report(s.victim_task, failure=failure)),
            not_found,
        ),
        Input(
            "name of a client that is there",
            lambda s: s.unary("CheckIn", s.check_in(name="c0")),
            exactly("ALREADY_EXISTS", "PERMISSION_DENIED"),  # where names are proven
        ),
        Input(
            "method that is not there",
            lambda s: s.unary("Everything", b""),
            exactly("UNIMPLEMENTED"),
        ),
    ]


def _bad_order(rng: random.Random) -> list[Input]:
    data = rng.randbytes(200)
    # The attacker's round may have closed meanwhile: then a receipt (late, surplus) comes first.
    # And of two streams for one task the newer wins: the older is never answered.
    refused = REFUSED | {"OK", "DEADLINE_EXCEEDED"}
    return [
        Input(
            "frame before the opening",
            lambda s: s.upload([frame(data)]),
            exactly("INVALID_ARGUMENT"),
        ),
        Input("upload of nothing", lambda s: s.upload([]), exactly("INVALID_ARGUMENT")),
        Input("empty message", lambda s: s.upload([b""]), exactly("INVALID_ARGUMENT")),
        Input(
            "opened twice",
            lambda s: s.upload([s.opening(s.task_id, sha256=bytes(32), size=500)] * 2),
            refused,
        ),
        Input(
            "frame at a wrong offset",
            lambda s: s.upload(
                [s.opening(s.task_id, sha256=bytes(32), size=500), frame(data, offset=2**40)]
            ),
            refused,
        ),
        Input(
            "frame with a wrong checksum",
            lambda s: s.upload(
                [s.opening(s.task_id, sha256=bytes(32), size=500), frame(data, crc=1)]
            ),
            refused,
        ),
        Input(
            "more than was announced",
            lambda s: s.upload([s.opening(s.task_id, sha256=bytes(32), size=100), frame(data)]),
            refused,
        ),
        Input(
            "wrong digest",
            lambda s: s.upload([s.opening(s.task_id, sha256=bytes(32), size=200), frame(data)]),
            refused,
        ),
        Input(
            "short digest",
            lambda s: s.upload([s.opening(s.task_id, sha256=b"x", size=200), frame(data)]),
            refused,
        ),
    ]


def _huge(rng: random.Random) -> list[Input]:
    many = {f"m{i}": 1.0 for i in range(5000)}
    size = rng.choice((2**62, 2**63, 2**64 - 1))
    return [
        Input(
            "an update of exabytes",
            lambda s: s.upload([s.opening(s.task_id, sha256=bytes(32), size=size)]),
            REFUSED | {"OK"},
        ),
        Input(
            "5,000 metrics",
            lambda s: s.unary(
                "Report", s.report(s.task_id, result=federation_pb2.Result(metrics=many))
            ),
            exactly("INVALID_ARGUMENT", "NOT_FOUND"),
        ),
        Input(
            "metric that is not a number",
            lambda s: s.unary(
                "Report",
                s.report(s.task_id, result=federation_pb2.Result(metrics={"x": float("nan")})),
            ),
            exactly("INVALID_ARGUMENT", "NOT_FOUND"),
        ),
        Input(
            "message of 5 MB",
            lambda s: s.unary("CheckIn", bytes(5_000_000)),
            exactly("RESOURCE_EXHAUSTED"),
        ),
        Input(
            "name of 100 kB",
            lambda s: s.unary("CheckIn", s.check_in(name="x" * 100_000)),
            exactly("INVALID_ARGUMENT", "PERMISSION_DENIED"),
        ),
        Input(
            "offset beyond the payload",
            lambda s: s.download(s.download_request(s.task_id, s.digest, 2**62)),
            exactly("OUT_OF_RANGE", "NOT_FOUND"),
        ),
    ]


def _below_grpc(rng: random.Random) -> list[Input]:
    noise = rng.randbytes(rng.randint(1, 2000))
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = bytes(3) + b"\x04\x00" + bytes(4)
    header = rng.randrange(2**24).to_bytes(3, "big") + rng.randbytes(6)
    return [
        Input("random bytes to the port", lambda s: s.raw(noise), CLOSED),
        Input("random HTTP/2 frames", lambda s: s.raw(preface + settings + noise), CLOSED),
        Input("HTTP/2 frame of 16 MB", lambda s: s.raw(preface + settings + header), CLOSED),
        Input("HTTP/1 request", lambda s: s.raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), CLOSED),
        Input("a connection that says nothing", lambda s: s.raw(b""), CLOSED),
    ]


Supply = Callable[[random.Random], list[Input]]


def endless(seed: int, *more: Supply) -> Iterator[Input]:
    """Yield inputs of all kinds for ever; mutations of messages are the greater part."""
    rng = random.Random(seed)
    while True:
        for _ in range(4):
            yield from _mutations(rng)
        for make in (_foreign, _bad_order, _huge, _below_grpc, *more):
            found = make(rng)
            yield from rng.sample(found, min(len(found), 4))
