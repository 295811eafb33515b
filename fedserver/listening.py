"""Where the server of a data directory listens, or did when it ran last; for who asks beside it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from structlog.stdlib import get_logger

from fedserver.errors import AddressError
from fedserver.listeners import split_address

log = get_logger()

FILE = "listening.json"


@dataclass(frozen=True)
class Listening:
    """What a server noted when it began to listen."""

    addresses: Mapping[str, str]
    """`HOST:PORT` by listener: `client`, and as far as they are open `join`, `control`,
    `dashboard` and `metrics`."""
    insecure: bool
    """Whether it speaks plain text."""


def note(root: Path, lines: Sequence[str], *, insecure: bool) -> None:
    """Write down where a server listens; a disk that refuses that does not end it.

    Better no note then than that of the server before.

    Args:
        root: the data directory.
        lines: the client port's address, then `NAME ADDRESS` for each further listener.
        insecure: whether it speaks plain text.
    """
    client, *others = lines
    found = Listening({"client": client, **dict(line.split(" ") for line in others)}, insecure)
    path, new = root / FILE, root / f"{FILE}.new"
    try:
        new.write_text(json.dumps(asdict(found), indent=1))
        new.replace(path)
    except OSError as error:
        log.warning("addresses_not_noted", reason=str(error))
        with contextlib.suppress(OSError):
            path.unlink()


def noted(root: Path) -> Listening | None:
    """Return what the newest server of a data directory noted; None where that cannot be read."""
    try:
        found = json.loads((root / FILE).read_bytes())
        addresses = {str(name): str(address) for name, address in found["addresses"].items()}
        for address in (addresses["client"], *addresses.values()):
            split_address(address)
        return Listening(addresses, bool(found["insecure"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AddressError):
        return None
