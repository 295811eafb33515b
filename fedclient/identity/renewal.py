"""Keeps a daemon's certificate fresh, in mid-work, without losing a transfer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import grpc
from structlog.stdlib import get_logger

from fedclient.channel import RenewableChannel, open_secure_channel
from fedclient.errors import CertificateError
from fedclient.identity.store import Identity, IdentityStore
from fedclient.transfer.peer import Peer
from motley.errors import IdentityError
from motley.identity.keys import signing_request
from motley.wire.stubs import federation_pb2

log = get_logger()

LONGEST_WAIT = 3600.0
"""Seconds between two looks at the clock at most: it may be put right, or the device may sleep."""
LOOKS_AGAIN = (5.0, 20.0, 60.0, 180.0)
"""Seconds before each further look at a clock by which the certificate is of no use: GPS or NTP may
have set it wrong for a moment, and a daemon that ends for that is not started again. Certificates
that live for less than an hour are looked at sooner: they do run out."""


class Renewal:
    """Renews the certificate of one daemon when a third of its life is left."""

    def __init__(
        self,
        peer: Peer,
        store: IdentityStore,
        channel: RenewableChannel,
        identity: Identity,
        server: str,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._peer, self._store, self._channel = peer, store, channel
        self._server, self._clock = server, clock
        self.identity = identity

    async def run(self) -> None:
        """Go on until cancelled.

        Raises:
            CertificateError: it ran out, at every one of some looks at the clock: the server was
                away for too long, or refuses.
        """
        backoff = self._peer.backoff()
        while True:
            now = await self._time()
            wait = self.identity.certificate.renew_at - now
            if wait > 0:
                await self._peer.sleep(min(wait, LONGEST_WAIT))
                continue
            try:
                await self._renew()
                backoff.reset()
            except (grpc.aio.AioRpcError, CertificateError, IdentityError, OSError) as error:
                wait = min(backoff.next(), max(0.0, self.identity.certificate.not_after - now))
                log.warning("certificate_not_renewed", reason=_words(error), retry_in=round(wait))
                await self._peer.sleep(wait)

    async def _time(self) -> float:
        """Return what the clock says; raise CertificateError when it goes on to say: of no use."""
        held = self.identity.certificate
        for pause in LOOKS_AGAIN:
            wait, now = min(pause, (held.not_after - held.not_before) / 20), self._clock()
            try:
                self.identity.check(now)
                return now
            except CertificateError as error:
                log.warning("certificate_of_no_use", reason=str(error), looking_again_in=wait)
                await self._peer.sleep(wait)
        now = self._clock()
        self.identity.check(now)
        return now

    async def _renew(self) -> None:
        key = await asyncio.to_thread(self._store.renewing_key, self.identity)
        reply = await self._peer.stub.Renew(
            federation_pb2.RenewRequest(signing_request=signing_request(key)),
            timeout=self._peer.patience.call_seconds,
        )
        self.identity = await asyncio.to_thread(
            self._store.renew, self.identity, key, reply.certificate, self._clock()
        )
        # New calls show the new certificate; those under way end as they began.
        self._channel.use(open_secure_channel(self._server, self.identity))
        log.info("certificate_renewed", seconds_left=round(self._left()))

    def _left(self) -> float:
        return self.identity.certificate.not_after - self._clock()


def _words(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return error.details() or error.code().name
    return str(error)
