"""Becoming a client: a join token for a certificate. docs/security.md tells why in these steps."""

from __future__ import annotations

import hmac
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc import StatusCode

from fedclient.errors import JoinError, OptionError, RefusedError, UnreachableError
from fedclient.identity.store import Identity, IdentityStore, check_issued
from motley.errors import IdentityError
from motley.identity.certificates import certificate_to_pem, read_certificate
from motley.identity.keys import fingerprint, signing_request
from motley.identity.names import CHANNEL_OPTIONS
from motley.identity.tokens import JoinToken
from motley.wire.stubs import join_pb2, join_pb2_grpc

CONNECT_SECONDS = 10.0
CALL_SECONDS = 20.0
ATTEMPTS = 4
_AGAIN = {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.RESOURCE_EXHAUSTED}
_REFUSED = {
    StatusCode.PERMISSION_DENIED,
    StatusCode.ALREADY_EXISTS,
    StatusCode.INVALID_ARGUMENT,
    StatusCode.UNIMPLEMENTED,
}


def join(
    token: JoinToken,
    name: str,
    store: IdentityStore,
    server: str = "",
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> Identity:
    """Join a server's federation and keep what it gives.

    Args:
        token: what the operator gave.
        name: this client's name.
        store: where the key and the certificates are kept.
        server: `HOST:PORT` of the join port, when it is not the token's.
        sleep: waits that many seconds between attempts.

    Raises:
        JoinError: the server is not the one that made the token. Nothing secret was sent.
        RefusedError: the server does not take this token, or not for this name.
        UnreachableError: nobody answers.
        OptionError: the address is none.
    """
    address = server or token.server
    authority = _authority(address, token, sleep)
    # From here on only the holder of the authority's key can answer: now the secret may go.
    key = store.joining_key()
    request = join_pb2.EnrolRequest(
        token_id=token.id, secret=token.secret, name=name, signing_request=signing_request(key)
    )
    root = certificate_to_pem(authority)
    reply = _call(address, root, lambda stub: stub.Enrol, request, sleep)
    check_issued(reply.certificate, key, name)
    store.save(key, reply.certificate, authority, reply.server)
    return store.load(name)


def _authority(address: str, token: JoinToken, sleep: Callable[[float], None]) -> bytes:
    """Return the authority's certificate (DER) that the token's fingerprint names."""
    leaf = _leaf(address)
    _check_clock(leaf)
    # A channel that trusts this one certificate, whoever made it: only a public question is asked.
    request = join_pb2.AuthorityRequest()
    reply = _call(address, leaf, lambda stub: stub.Authority, request, sleep)
    if not hmac.compare_digest(fingerprint(reply.authority), token.authority):
        raise JoinError(
            f"the server at {address} is not the one that made this token: its authority has the "
            f"fingerprint {fingerprint(reply.authority).hex()[:16]}..., the token names "
            f"{token.authority.hex()[:16]}...; somebody may be in between. Nothing secret was sent"
        )
    return bytes(reply.authority)


def _leaf(address: str) -> bytes:
    """Return the certificate (PEM) that whoever answers at an address shows; not verified."""
    host, _, port = address.rpartition(":")
    try:
        pem = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS)
    except ssl.SSLError as error:
        raise UnreachableError(
            f"what answers at {address} does not speak TLS ({error.reason}); is that the join "
            f"port of a fedserver with certificates?"
        ) from None
    except OSError as error:
        raise UnreachableError(
            f"nobody answers at {address} ({error}); is the server running, and can this device "
            f"reach it? Another address of its join port: --server HOST:PORT"
        ) from None
    except ValueError:  # no port, or a host that cannot be asked for: "server..example"
        raise OptionError(
            f"{address!r} is no address: expected HOST:PORT with the host's name or IP address, "
            f"e.g. --server 192.168.1.10:9401"
        ) from None
    return pem.encode()


def _check_clock(leaf: bytes) -> None:
    found, now = read_certificate(leaf), time.time()
    if not found.not_before <= now < found.not_after:
        says = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
        raise JoinError(
            f"the server's certificate is not valid at this moment ({says} by the clock of this "
            f"device): set the clock; if it is right, the server's is wrong"
        )


def _call(
    address: str,
    root: bytes,
    method: Callable[[join_pb2_grpc.JoinStub], Any],
    request: Any,
    sleep: Callable[[float], None],
) -> Any:
    """Make one call on a channel of its own that trusts `root`; brief troubles are waited out."""
    credentials = grpc.ssl_channel_credentials(root)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with grpc.secure_channel(address, credentials, list(CHANNEL_OPTIONS)) as channel:
                return method(join_pb2_grpc.JoinStub(channel))(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            said = error.details() or error.code().name
            if error.code() in _REFUSED:
                raise RefusedError(f"the server does not let this device join: {said}") from None
            if error.code() not in _AGAIN or attempt == ATTEMPTS:
                raise UnreachableError(f"the join port {address} does not work: {said}") from None
            sleep(2.0 ** (attempt - 1))
    raise AssertionError


def host_name() -> str:
    """Return this machine's name as a client's name; raise IdentityError when it is of no use."""
    from fedclient.options import NAME

    name = socket.gethostname().partition(".")[0]
    if not NAME.fullmatch(name):
        raise IdentityError(f"this machine's name {name!r} cannot be a client's; give --name")
    return name
