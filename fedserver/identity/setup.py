"""What `fedserver init` does: an authority, a server certificate, a first join token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedserver.errors import AddressError
from fedserver.identity.authority import Authority, Settings, outward_address
from fedserver.identity.registry import Registry
from fedserver.storage.database import lock_directory, open_database
from motley.identity.keys import fingerprint

DEFAULT_PORT = 9400
"""The client port where none is named; the join port is the next one."""


def make_authority(
    data: Path,
    *,
    address: str,
    client_lifetime: float,
    operator_lifetime: float,
    server_lifetime: float,
    uses: int,
    seconds: float,
) -> dict[str, Any]:
    """Make an authority in a data directory that no server uses; return what to tell people.

    Args:
        data: the data directory.
        address: `HOST[:PORT]` as devices are told; "" for this machine's outward address.
        client_lifetime, operator_lifetime, server_lifetime: of certificates, in seconds.
        uses: how many devices may join with the first token.
        seconds: until it runs out.

    Raises:
        IdentityError: there is an authority already.
        DataDirectoryError: the directory is in use, or not one of this program.
        AddressError: the address is not `HOST[:PORT]`.
    """
    host, port = _parts(address) if address else (outward_address(), 0)
    settings = Settings(
        host=host,
        port=port,
        client_lifetime=client_lifetime,
        operator_lifetime=operator_lifetime,
        server_lifetime=server_lifetime,
    )
    lock = lock_directory(data)
    try:
        authority = Authority.create(data, settings)
        database = open_database(data)
        try:
            join = settings.address((port or DEFAULT_PORT) + 1)
            token, record = Registry(database, authority).create_token(uses, seconds, "", join)
        finally:
            database.dispose()
    finally:
        lock.close()
    return {
        **record,
        "folder": str(data / "identity"),
        "address": settings.address(port or DEFAULT_PORT),
        "authority": fingerprint(authority.der).hex(),
        "server": join,
        "token": str(token),
        "join": f"fedclient join {token} --name NAME",
    }


def _parts(address: str) -> tuple[str, int]:
    """Return host and port (0 when there is none) of `HOST[:PORT]`."""
    host, port = address, ""
    if address.count(":") == 1 or address.startswith("["):
        head, separator, tail = address.rpartition(":")
        if separator and not tail.endswith("]"):
            host, port = head, tail
    host = host.strip("[]")
    usable = host.isascii() and host and not set(host) & set(" /@")
    if not usable or (port and not _is_port(port)) or len(host) > 253:
        raise AddressError(f"--address {address!r}: expected HOST or HOST:PORT")
    return host, int(port or 0)


def _is_port(text: str) -> bool:
    # One below the highest: the join port is the next.
    return text.isascii() and text.isdigit() and 0 < int(text) < 65535
