"""Files and folders that their owner alone can use. Does without `cryptography`."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from motley.errors import IdentityError
from motley.wire.durable import replacing


def write_private(path: Path, content: bytes) -> None:
    """Write a file that its owner alone can read, whole or not at all, synced to the disk."""
    # mkstemp, which is below `replacing`, creates with 0600: no moment of wider permissions.
    with replacing(path) as stream:
        stream.write(content)


def read_private(path: Path) -> bytes:
    """Return the content of a file with a key.

    Raises:
        IdentityError: not there, or others than its owner can read or write it.
    """
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            content = stream.read()
    except OSError as error:
        raise IdentityError(f"{path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise IdentityError(
            f"{path} holds a private key and others can use it (mode {mode:04o}); if nobody has "
            f"copied it: chmod 600 {path}"
        )
    return content


def make_private_folder(path: Path) -> None:
    """Make a folder that its owner alone can enter."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
