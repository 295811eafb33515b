"""The server's certificate as gRPC takes it, renewed while connections stand."""

from __future__ import annotations

import asyncio

import grpc
from structlog.stdlib import get_logger

from fedserver.identity.authority import Authority

log = get_logger()

LONGEST_WAIT = 3600.0
"""Seconds between two looks at the server's certificate at most: clocks are put right at times."""
RETRY_SECONDS = 10.0


def mutual(authority: Authority) -> grpc.ServerCredentials:
    """Return credentials of one port, that asks for a certificate of this authority."""
    return _credentials(authority, certificate_wanted=True)


def one_sided(authority: Authority) -> grpc.ServerCredentials:
    """Return credentials of one port, that asks its callers for none."""
    return _credentials(authority, certificate_wanted=False)


def _credentials(authority: Authority, *, certificate_wanted: bool) -> grpc.ServerCredentials:
    newest = NewestCertificate(authority)
    return grpc.dynamic_ssl_server_credentials(
        newest.configuration(),
        newest.if_changed,  # type: ignore[arg-type]  # gRPC takes None; its types do not say so
        require_client_authentication=certificate_wanted,
    )


class NewestCertificate:
    """Gives one port the server's certificate; gRPC asks at every handshake, so that a renewed one
    needs no restart."""

    def __init__(self, authority: Authority) -> None:
        self._authority, self._given = authority, authority.server_pair

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """Return the certificate that was given last, as gRPC takes it."""
        return grpc.ssl_server_certificate_configuration([self._given], self._authority.pem)

    def if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the newest certificate if it was not given yet, else None.

        gRPC frees what it had when it is given another, also under handshakes that are just
        beginning on other threads: the process dies of it. So it is given a new one only when
        there is one, and not at each of a stranger's thousand handshakes.
        """
        newest = self._authority.server_pair
        if newest == self._given:
            return None
        self._given = newest
        return self.configuration()


async def keep_fresh(authority: Authority) -> None:
    """Renew the server's certificate in time, until cancelled."""
    while True:
        try:
            wait = await asyncio.to_thread(authority.renew_server_if_due)
        except Exception as error:  # a full disk, say: the old certificate still stands
            log.error("server_certificate_not_renewed", reason=repr(error))
            wait = RETRY_SECONDS
        await asyncio.sleep(min(max(wait, 0.1), LONGEST_WAIT))
