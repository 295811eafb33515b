"""What stands in certificates, and how a channel is told to look for it. Needs no cryptography."""

from __future__ import annotations

SERVER_NAME = "server.motley.internal"
"""The name in every server's certificate. Clients look for it whatever address they dial, so that
a server that moves, or is reached through a port forwarding, needs no new certificate."""

CHANNEL_OPTIONS = (("grpc.ssl_target_name_override", SERVER_NAME),)
"""What a channel needs to look for `SERVER_NAME`."""

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
