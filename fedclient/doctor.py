"""`fedclient doctor`: what may keep this device from taking part, and what to do about it."""

from __future__ import annotations

import json
import shlex
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from fedclient.channel import CHANNEL_OPTIONS
from fedclient.errors import ClientError
from fedclient.options import clients_directory
from fedclient.profile import LIBRARIES
from motley.checkup import machine
from motley.checkup.findings import Finding, fine, problem, warning
from motley.errors import IdentityError

SECONDS = 10.0
"""For one try to reach the server."""
SLOW_ANSWER = 1.0
HEALTH = "/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"
"""grpc.health.v1.HealthCheckResponse with status SERVING."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What the doctor is asked about."""

    state: Path
    name: str = ""
    """"" for the name on the certificate."""
    server: str = ""
    """"" for the address that was told at joining."""
    insecure: bool = False
    device: str = "cpu"


def examine(patient: Patient) -> Iterator[Finding]:
    """Yield one finding after another; none raises, and nothing on the device is changed.

    The slowest comes last.
    """
    yield machine.versions([name for name in LIBRARIES if name != "torch"])
    yield machine.disk("state directory", patient.state)
    yield machine.codec()
    if patient.insecure:
        yield _answers(patient.server, grpc.insecure_channel(patient.server, CHANNEL_OPTIONS))
    else:
        yield from _identity(patient)
    yield machine.compiled_loops()
    yield machine.torch_build(patient.device)


def _identity(patient: Patient) -> Iterator[Finding]:
    """Yield what is to be said of the certificate, and what needs one."""
    from fedclient.identity.store import IdentityStore
    from motley.checkup import trust
    from motley.identity.names import CHANNEL_OPTIONS as NAMES

    folder, now = patient.state / "identity", time.time()
    if not IdentityStore(patient.state).joined:
        do = "say --insecure --server HOST:PORT, or join"
        join = _join(patient, patient.name or "NAME")
        yield problem("certificate", f"{folder} holds none: not joined", do, join)
        return
    path = folder / "client.pem"
    name = patient.name or _owner(path) or "NAME"
    mend = "join anew with a token that the server's operator makes"
    commands = f"fedserver tokens create --client {name}", _join(patient, name)
    yield trust.permissions("key", path)
    yield trust.certificate(
        "certificate", path, now, mend=mend, renews="by the daemon", commands=commands
    )
    known = {"this device's certificate": trust.read(path)}
    known["the authority's"] = trust.read(folder / "authority.pem")
    server = patient.server or _told(folder)
    shown = server and _leaf(server)
    if shown:
        from motley.identity.certificates import read_certificate

        known["the server's"] = read_certificate(shown.encode())
    yield trust.clock({whose: found for whose, found in known.items() if found}, now)
    try:
        identity = IdentityStore(patient.state).load(name)
    except (ClientError, IdentityError) as error:
        yield problem("identity", str(error), f"mend what stands above; else {mend}", *commands)
        return
    credentials = grpc.ssl_channel_credentials(identity.authority, identity.key, identity.chain)
    options = (*CHANNEL_OPTIONS, *NAMES)
    yield _answers(server, grpc.secure_channel(server, credentials, options))


def _answers(server: str, channel: grpc.Channel) -> Finding:
    """Ask the server whether it works; gRPC's health service needs no session."""
    host = server.rpartition(":")[0].strip("[]")
    try:
        socket.getaddrinfo(host, None)
    except (OSError, ValueError) as error:  # the latter of "server..example"
        return problem("server", f"{host} has no address: {error}", "check the name, and the DNS")
    check: Callable[..., bytes] = channel.unary_unary(HEALTH)
    with channel:
        try:
            check(b"", timeout=SECONDS, wait_for_ready=False)
            started = time.perf_counter()
            answer = check(b"", timeout=SECONDS)
        except grpc.RpcError as error:
            said = error.details() or error.code().name
            do = (
                "is it running, is the port right, does a firewall let it through? After a new "
                "`fedserver init` every device joins anew; compare --insecure on both sides"
            )
            return problem("server", f"{server} does not answer: {said}", do)
    seconds = time.perf_counter() - started
    if not answer.startswith(SERVING):
        return problem("server", f"{server} answers, and does not serve", "look into its log")
    text = f"{server} answers in {seconds * 1000:.0f} ms"
    if seconds > SLOW_ANSWER:
        return warning("server", text, "the link or the server is slow; transfers go on anyway")
    return fine("server", text)


def _leaf(server: str) -> str:
    """Return the certificate (PEM) that the server shows, unverified; "" when it shows none."""
    host, _, port = server.rpartition(":")
    try:
        return ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=SECONDS)
    except (OSError, ValueError):
        return ""


def _told(folder: Path) -> str:
    """Return the address that the server told at joining; "" when it cannot be read."""
    try:
        return str(json.loads((folder / "server.json").read_bytes())["server"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _owner(path: Path) -> str:
    """Return the name on a certificate; "" when there is none."""
    from motley.checkup import trust

    found = trust.read(path)
    return found.name if found else ""


def _join(patient: Patient, name: str) -> str:
    """Return the command by which this device joins, once it has a token."""
    usual = clients_directory() in (patient.state, patient.state.parent)
    state = [] if usual else ["--state", str(patient.state)]
    return shlex.join(["fedclient", "join", "TOKEN", "--name", name, *state])
