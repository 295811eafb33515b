"""`fedserver doctor`: what may keep this server from working, and what to do about it."""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedserver.client import ControlError, Operator
from fedserver.control_socket import control_socket
from fedserver.listeners import next_port, split_address
from fedserver.listening import Listening, noted
from motley.checkup import machine
from motley.checkup.findings import Finding, fine, problem, warning
from motley.errors import IdentityError

LIBRARIES = ("numpy", "grpcio", "protobuf", "sqlalchemy", "alembic", "grpcio-health-checking")
FEW_FILES = 1024
CONNECT_SECONDS = 5.0
_OPTIONS = {"client": "--listen", "join": "--join-listen", "control": "--control-listen"}
"""Of `serve`, by listener; others have the listener's name."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What the doctor is asked about."""

    data: Path
    listen: str = ""
    """Client port, `HOST:PORT`; "" for where the server listens, or did last, or would."""
    join_listen: str = ""
    """Join port; "" as for the client port, or the one after that where it is given."""
    no_join: bool = False
    insecure: bool = False
    """Whether it is to speak plain text; of a server that ran before it is known."""


def examine(patient: Patient) -> Iterator[Finding]:
    """Yield one finding after another; none raises, and nothing in the directory is changed.

    The slowest comes last.
    """
    yield machine.versions(LIBRARIES)
    yield machine.disk("data directory", patient.data)
    yield machine.codec()
    yield _open_files()
    runs, known = _is_running(patient.data), noted(patient.data)
    insecure = known.insecure if known and (runs or not patient.insecure) else patient.insecure
    if known and (patient.listen or known.insecure != insecure):
        known = None
    addresses = ports(patient, known, insecure=insecure)
    start = _command("serve", patient.data, *_options(addresses, insecure=insecure))
    yield runs or warning("server", "none runs on this data directory", "start it", start)
    for name, address in addresses.items():
        was_noted = known is not None and known.addresses.get(name) == address
        yield _port(name, address, running=runs is not None, is_known=was_noted)
    if not insecure:
        yield from _authority(patient.data)
    yield machine.compiled_loops()
    yield machine.torch_build()


def ports(patient: Patient, known: Listening | None, *, insecure: bool) -> Mapping[str, str]:
    """Return the addresses to look at, by name of the listener.

    Without a note of the server's they are what `serve` listens on with the same options.
    """
    if known:
        found = dict(known.addresses)
    else:
        client = patient.listen or _usual(insecure)
        found = {"client": client, "join": next_port(client)}
    if patient.join_listen:
        found["join"] = patient.join_listen
    if patient.no_join or insecure:
        found.pop("join", None)
    return found


def _usual(insecure: bool) -> str:
    return "127.0.0.1:9400" if insecure else "0.0.0.0:9400"


def _options(addresses: Mapping[str, str], *, insecure: bool) -> list[str]:
    """Return the options with which `serve` listens on these addresses."""
    usual = {"client": _usual(insecure), "join": next_port(addresses["client"])}
    found = ["--insecure"] * insecure
    for name, address in addresses.items():
        if usual.get(name) != address:
            found += [_OPTIONS.get(name, f"--{name}"), address]
    return found + ["--no-join"] * ("join" not in addresses and not insecure)


def _command(words: str, data: Path, *options: str) -> str:
    """Return a command of this program for a data directory, to be typed as it is."""
    return f"fedserver {words} {shlex.join(['--data', str(data), *options])}"


def _open_files() -> Finding:
    """Each client takes a file; the server raises its limit as far as the hard one allows."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    unbounded = most == resource.RLIM_INFINITY
    text = "no limit" if unbounded else f"up to {most}"
    if not unbounded and most < FEW_FILES:
        return warning("open files", text, "raise it (ulimit -Hn): each client takes one")
    return fine("open files", text)


def _is_running(data: Path) -> Finding | None:
    """Ask over the control socket; None when nobody answers there."""
    if not control_socket(data).exists():
        return None
    if not os.access(control_socket(data), os.R_OK | os.W_OK):
        return problem("server", f"{control_socket(data)} is another user's", "ask as its owner")
    with contextlib.suppress(ControlError), Operator(data) as operator:
        runs = operator.runs()
        return fine("server", f"answers; {len(runs)} runs on record")
    return None


def _port(name: str, address: str, *, running: bool, is_known: bool) -> Finding:
    """Tell whether a port answers, or where no server runs whether one could have it."""
    what = f"{name} port"
    host, port = split_address(address)
    host = host.strip("[]")
    if running:
        near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        try:
            socket.create_connection((near, port), CONNECT_SECONDS).close()
        except OSError as error:
            do = "is it the address that `fedserver serve` was given? Say it with --listen"
            if is_known:
                do = "the server listened there when it began; look into its log"
            return problem(what, f"{address}: {error.strerror or error}", do)
        return fine(what, f"{address} takes connections")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        option = _OPTIONS.get(name, f"--{name}")
        do = f"end what listens there, or give `fedserver serve` another with {option}"
        return problem(what, f"{address}: {error.strerror or error}", do)
    return fine(what, f"{address} is free")


def _authority(data: Path) -> Iterator[Finding]:
    """Yield what is to be said of the authority, the certificates and the clock."""
    from motley.checkup import trust

    folder, now = data / "identity", time.time()
    authority = trust.read(folder / "authority.pem")
    if authority is None:
        do = "say --insecure, or make one"
        yield problem("authority", f"{folder} holds none", do, _command("init", data))
        return
    backup = "put identity/ back from a backup"
    authority_file = folder / "authority.pem"
    yield trust.certificate("authority", authority_file, now, mend=backup, renews="")
    yield trust.permissions("authority's key", folder / "authority.key")
    server = trust.read(folder / "server.pem")
    if server is not None:
        path, mend = folder / "server.pem", "start the server again: it signs a new one"
        yield trust.certificate("certificate", path, now, mend=mend, renews="by the server")
        yield trust.permissions("key", path)
    known = {"the authority's certificate": authority, "the server's": server}
    yield trust.clock({whose: found for whose, found in known.items() if found}, now)
    yield from _operators(data, now)


def _operators(data: Path, now: float) -> Iterator[Finding]:
    """Yield a line for each operator whose certificate is about to run out: none renews itself."""
    from fedserver.identity.operators import Operators
    from motley.checkup.trust import DAY, moment

    try:
        entries = Operators(data).entries().values()
    except IdentityError as error:
        yield problem("operators", str(error), "put identity/operators.json back from a backup")
        return
    for entry in entries:
        if entry.not_after - now < 30 * DAY:
            name = entry.name
            again = _command(f"operators create {name}", data, "-o", f"{name}.json")
            yield warning(
                f"operator {name}",
                f"until {moment(entry.not_after)}",
                "make another certificate, and bring it over",
                _command(f"operators revoke {name}", data),
                again,
            )
