"""The secret that opens the dashboard where others can reach its address."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from fedserver.errors import DataDirectoryError

FILE = "dashboard-token"
_CHARACTERS = 43
"""Of 32 random bytes."""


@dataclass(frozen=True, kw_only=True)
class DashboardToken:
    """What a browser must know."""

    secret: str
    is_new: bool
    """Whether it was made just now, and has to be told."""

    @classmethod
    def of(cls, root: Path) -> DashboardToken:
        """Return a data directory's token, a new one if there is none or others could read it.

        Raises:
            DataDirectoryError: the file cannot be read or written.
        """
        path = root / FILE
        try:
            if path.exists() and not path.stat().st_mode & 0o077:
                secret = path.read_text().strip()
                if len(secret) == _CHARACTERS:
                    return cls(secret=secret, is_new=False)
            path.unlink(missing_ok=True)
            secret = secrets.token_urlsafe(32)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as stream:
                stream.write(f"{secret}\n")
        except OSError as error:
            raise DataDirectoryError(
                f"the dashboard's token {path} cannot be kept: {error.strerror}; "
                f"remove the file, or serve the dashboard on 127.0.0.1 alone"
            ) from None
        return cls(secret=secret, is_new=True)

    def is_right(self, text: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(text.encode(), self.secret.encode())

    @property
    def cookie(self) -> str:
        """What the browser keeps instead of the token: cookies go to all ports of a host."""
        return hmac.new(self.secret.encode(), b"dashboard", hashlib.sha256).hexdigest()

    def opens(self, cookie: str) -> bool:
        """Compare a cookie in constant time."""
        return hmac.compare_digest(cookie.encode(), self.cookie.encode())
