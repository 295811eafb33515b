"""Who calls: the name in a message against the certificate of the connection."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from structlog.stdlib import get_logger

from fedserver.errors import ExpiredError, ForbiddenError, ProtocolError, RevokedError
from fedserver.service.status import abort_with
from motley.identity.names import CLIENT, OPERATOR

if TYPE_CHECKING:
    from fedserver.identity.operators import Operators
    from fedserver.identity.registry import Registry
    from fedserver.rounds.clock import Clock
    from fedserver.service.status import Context
    from motley.identity.certificates import Certificate

log = get_logger()

_MOST_KEPT = 16_384
"""Certificates whose content is remembered; each connection shows its own at every call.

More than the clients that one server holds: they come round in turn, so that a smaller memory
would have forgotten each just before it is asked for again.
"""
END_SECONDS = 5.0
"""How long calls that are cut short may take to clean up, and their clients to hear of it."""


class Certificates:
    """Reads the certificate that a connection was made with."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: OrderedDict[bytes, Certificate] = OrderedDict()

    def of(self, context: Context, role: str) -> Certificate:
        """Return the caller's certificate.

        Raises:
            ForbiddenError: none, or of another role.
            ExpiredError: it ran out while the connection stood.
        """
        found = self._read(b"".join(context.auth_context().get("x509_pem_cert", ())))
        if found is None or found.role != role:
            other = f"a certificate for the role {found.role!r}" if found else "no certificate"
            raise ForbiddenError(f"this port is for the role {role!r}, and the caller has {other}")
        if found.not_after <= self._clock.wall():
            raise ExpiredError(f"the certificate of {found.name!r} ran out; connect with a new one")
        return found

    def _read(self, pem: bytes) -> Certificate | None:
        from motley.identity.certificates import read_certificate

        if not pem:
            return None
        digest = hashlib.sha256(pem).digest()
        found = self._known.pop(digest, None) or read_certificate(pem)
        self._known[digest] = found
        if len(self._known) > _MOST_KEPT:
            self._known.popitem(last=False)
        return found


class Callers:
    """Lets a call of a client in, or refuses it; and ends the open calls of one shut out.

    Methods run on the event loop. Without a registry every name is believed.
    """

    def __init__(self, registry: Registry | None = None, clock: Clock | None = None) -> None:
        self.registry = registry
        self._certificates = Certificates(clock) if clock else None
        self._open: dict[str, dict[asyncio.Task[object], Context]] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def name(self, context: Context) -> str:
        """Return the name in the caller's certificate; raise when it has none."""
        if self._certificates is None:
            raise ProtocolError("this server runs without certificates: there is none to renew")
        return self._certificates.of(context, CLIENT).name

    @contextlib.contextmanager
    def admitted(self, context: Context, name: str) -> Iterator[None]:
        """Hold a call of the client `name`.

        Raises:
            ForbiddenError: the connection's certificate is not this client's.
            RevokedError: the client, or this certificate of it, was shut out.
        """
        if self.registry is None or self._certificates is None:
            yield
            return
        found = self._certificates.of(context, CLIENT)
        if found.name != name:
            raise ForbiddenError(
                f"the certificate of this connection is for client {found.name!r}, and the "
                f"message says {name[:80]!r}; start with --name {found.name}, or join anew"
            )
        self.registry.check(found.name, found.serial)
        me = asyncio.current_task()
        assert me is not None
        calls = self._open.setdefault(name, {})
        calls[me] = context
        try:
            yield
        finally:
            calls.pop(me, None)
            if not calls and self._open.get(name) is calls:
                del self._open[name]

    async def shut_out(self, name: str, reason: str) -> None:
        """End every open call of a client with its reason, and wait until none works any more."""
        calls = dict(self._open.get(name, {}))
        if not calls:
            return
        error = RevokedError(f"client {name!r} was shut out: {reason}")
        # The status first and from here: a handler that is cancelled while it waits for its peer
        # to read has no say any more, and its client would see a bare CANCELLED.
        for context in calls.values():
            telling = asyncio.create_task(self._tell(context, error))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(list(calls), timeout=END_SECONDS)
        log.info("calls_ended", client=name, calls=len(calls))

    async def _tell(self, context: Context, error: RevokedError) -> None:
        """Send a call's last status; a peer that does not read is not waited for without end."""
        try:
            await asyncio.wait_for(abort_with(context, error), END_SECONDS)
        except Exception as ended:  # AbortError by design; others: the call was over
            log.debug("call_ended", reason=repr(ended))


class OperatorsOnly:
    """Checks that the caller of a control port over TCP is an operator who counts."""

    def __init__(self, operators: Operators, clock: Clock) -> None:
        self._operators, self._certificates = operators, Certificates(clock)

    def check(self, context: Context) -> str:
        """Return the operator's name; raise ForbiddenError when the caller is none."""
        found = self._certificates.of(context, OPERATOR)
        if found.serial not in self._operators.entries():
            raise ForbiddenError(f"the certificate of operator {found.name!r} was revoked")
        return found.name
