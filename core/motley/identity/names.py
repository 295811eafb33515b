"""What stands in certificates, and how a channel is told to look for it. Needs no cryptography."""

from __future__ import annotations

SERVER_NAME = "server.motley.internal"
"""The name in every server's certificate. Clients look for it whatever address they dial, so that
a server that moves, or is reached through a port forwarding, needs no new certificate."""

DIRECT = ("grpc.enable_http_proxy", 0)
"""Keeps a channel from the HTTP proxy that `http_proxy` and the like name in an environment: those
are for the web, and know no way to a server at home."""

CHANNEL_OPTIONS = (DIRECT, ("grpc.ssl_target_name_override", SERVER_NAME))
"""What a channel needs to look for `SERVER_NAME`, and at no proxy."""

CLIENT = "client"
OPERATOR = "operator"
_ROLES = (CLIENT, OPERATOR)


def identity_uri(role: str, name: str) -> str:
    """Return how a certificate names its owner, e.g. `motley:client:phone-1`."""
    return f"motley:{role}:{name}"


def owner_of(uris: list[str]) -> tuple[str, str] | None:
    """Return (role, name) of a certificate's alternative names; None unless exactly one fits."""
    found = [uri.split(":", 2)[1:] for uri in uris if uri.startswith("motley:")]
    if len(found) != 1 or len(found[0]) != 2 or found[0][0] not in _ROLES or not found[0][1]:
        return None
    return found[0][0], found[0][1]
