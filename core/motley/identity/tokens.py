"""Join tokens: one word that holds all that a device needs to become a client.

`motley1-` and, in base32: the version, the SHA-256 of the authority's certificate, the token's
id, its secret, the join port's address, and a CRC-32 over all of that.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass

from motley.errors import TokenError

_PREFIX = "motley1-"
_VERSION = 1
FINGERPRINT_BYTES = 32
ID_BYTES = 6
SECRET_BYTES = 16
LONGEST_ADDRESS = 260
_FIXED = 1 + FINGERPRINT_BYTES + ID_BYTES + SECRET_BYTES


@dataclass(frozen=True, kw_only=True)
class JoinToken:
    """What a token says."""

    authority: bytes
    """SHA-256 of the authority's certificate, 32 bytes."""
    id: bytes
    """6 bytes; in hex it is the id that `fedserver tokens` shows."""
    secret: bytes
    """16 bytes."""
    server: str
    """`HOST:PORT` of the join port."""

    def __str__(self) -> str:
        """Return the word that is given to a device."""
        body = bytes([_VERSION]) + self.authority + self.id + self.secret + self.server.encode()
        whole = body + zlib.crc32(body).to_bytes(4, "big")
        return _PREFIX + base64.b32encode(whole).decode().rstrip("=").lower()

    def __repr__(self) -> str:
        """Return what may stand in logs: not the secret."""
        return f"JoinToken(id={self.id.hex()}, server={self.server!r})"


def parse_token(text: str) -> JoinToken:
    """Read a token.

    Raises:
        TokenError: it is none, or a character of it is wrong or missing.
    """
    text = text.strip()
    if not text.startswith(_PREFIX):
        raise TokenError(
            f"this is no join token: one begins with {_PREFIX!r}; copy the whole word that "
            f"`fedserver init` or `fedserver tokens create` printed"
        )
    body = _checked(text.removeprefix(_PREFIX))
    if body[0] != _VERSION:
        raise TokenError(
            f"this join token is of version {body[0]}, this program reads {_VERSION}; install the "
            f"same version of motley-fl on both sides"
        )
    parts, at = [], 1
    for size in (FINGERPRINT_BYTES, ID_BYTES, SECRET_BYTES):
        parts.append(body[at : at + size])
        at += size
    server = body[at:].decode("ascii", errors="replace")
    return JoinToken(authority=parts[0], id=parts[1], secret=parts[2], server=server)


def _checked(text: str) -> bytes:
    """Return a token's bytes without their check sum; raise TokenError when it does not fit."""
    whole = b""
    # Strict lower case, and the one spelling of the last character: no two texts mean the same.
    if text == text.lower():
        try:
            whole = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
        except (binascii.Error, ValueError):
            whole = b""
    again = base64.b32encode(whole).decode().rstrip("=").lower()
    body, check = whole[:-4], whole[-4:]
    in_size = _FIXED < len(body) <= _FIXED + LONGEST_ADDRESS
    if not in_size or again != text or zlib.crc32(body).to_bytes(4, "big") != check:
        raise TokenError(
            "this join token has a typing error, or was not copied whole: its check sum does not "
            "fit; copy the whole word again"
        )
    return body
