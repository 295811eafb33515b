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
    """Return credentials of a port that asks for a certificate of this authority."""
    return _credentials(authority, certificate_wanted=True)


def one_sided(authority: Authority) -> grpc.ServerCredentials:
    """Return credentials of a port that asks its callers for none."""
    return _credentials(authority, certificate_wanted=False)


def _credentials(authority: Authority, *, certificate_wanted: bool) -> grpc.ServerCredentials:
    # Asked for at every handshake, so that a renewed certificate needs no restart.
    return grpc.dynamic_ssl_server_credentials(
        authority.server_configuration(),
        authority.server_configuration,
        require_client_authentication=certificate_wanted,
    )


async def keep_fresh(authority: Authority) -> None:
    """Renew the server's certificate in time, until cancelled."""
    while True:
        try:
            wait = await asyncio.to_thread(authority.renew_server_if_due)
        except Exception as error:  # a full disk, say: the old certificate still stands
            log.error("server_certificate_not_renewed", reason=repr(error))
            wait = RETRY_SECONDS
        await asyncio.sleep(min(max(wait, 0.1), LONGEST_WAIT))
