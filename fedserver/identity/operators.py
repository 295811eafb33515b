"""Operators' certificates: one bundle file each, and the list of those that count.

The list is a file, not a table: operators are made and struck off with or without a running
server, which notices a change of the file at the next call.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fedserver.identity.authority import Authority
from motley.errors import IdentityError
from motley.identity.certificates import certificate_to_pem, read_certificate
from motley.identity.keys import key_to_pem, new_key
from motley.identity.names import OPERATOR
from motley.identity.private_files import read_private, write_private

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class OperatorBundle(BaseModel):
    """What an operator holds in one file: all that is needed to steer the server from elsewhere."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    server: str
    """`HOST:PORT` of the control port; "" when none was named."""
    authority: str
    certificate: str
    key: str

    @classmethod
    def read(cls, path: Path) -> OperatorBundle:
        """Read a bundle; raise IdentityError when it is none, or when others can read it."""
        try:
            return cls.model_validate_json(read_private(path))
        except ValidationError:
            raise IdentityError(
                f"{path} is no operator's file; `fedserver operators create NAME -o FILE` on the "
                f"server's machine makes one"
            ) from None


class OperatorEntry(BaseModel):
    """One operator's certificate on the list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    not_after: float


class Operators:
    """The list in `identity/operators.json`."""

    def __init__(self, data: Path) -> None:
        self._path = data / "identity" / "operators.json"
        self._seen: tuple[int, int] | None = None
        self._entries: dict[str, OperatorEntry] = {}

    def create(self, authority: Authority, name: str, server: str, target: Path) -> OperatorEntry:
        """Write a bundle for a new operator and put its certificate on the list.

        Raises:
            IdentityError: the name has one already, or does not fit, or the file is there.
        """
        if not _NAME.fullmatch(name):
            raise IdentityError(
                f"operator name {name!r}: expected 1 to 64 letters, digits, '.', '_' or '-'"
            )
        if any(entry.name == name for entry in self.entries().values()):
            raise IdentityError(
                f"an operator called {name!r} has a certificate; choose another name, or first "
                f"`fedserver operators revoke {name}`"
            )
        if target.exists():
            raise IdentityError(f"{target} is there already; name a new file with -o")
        key = new_key()
        signed = authority.sign(OPERATOR, name, key.public_key())
        bundle = OperatorBundle(
            name=name,
            server=server,
            authority=authority.pem.decode(),
            certificate=certificate_to_pem(signed).decode(),
            key=key_to_pem(key).decode(),
        )
        found = read_certificate(signed)
        entry = OperatorEntry(name=name, not_after=found.not_after)
        try:
            write_private(target, bundle.model_dump_json(indent=1).encode())
        except OSError as error:
            raise IdentityError(f"{target} cannot be written: {error.strerror}") from None
        self._write({**self.entries(), found.serial: entry})
        return entry

    def revoke(self, name: str) -> None:
        """Strike an operator off the list; raise IdentityError when there is none of that name."""
        entries = self.entries()
        left = {serial: entry for serial, entry in entries.items() if entry.name != name}
        if len(left) == len(entries):
            known = ", ".join(sorted(entry.name for entry in entries.values())) or "none"
            raise IdentityError(f"there is no operator called {name!r}; there are: {known}")
        self._write(left)

    def entries(self) -> dict[str, OperatorEntry]:
        """Return the operators' certificates that count, by serial; read again when changed."""
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_ino)
            if seen != self._seen:
                raw = json.loads(self._path.read_bytes())
                self._entries = {k: OperatorEntry.model_validate(v) for k, v in raw.items()}
                self._seen = seen
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise IdentityError(f"{self._path} cannot be read: {error}") from None
        return self._entries

    def _write(self, entries: dict[str, OperatorEntry]) -> None:
        content = {serial: entry.model_dump() for serial, entry in entries.items()}
        write_private(self._path, json.dumps(content, indent=1).encode())
