"""Errors of the disk: what was asked failed, and may work once the operator made room."""

from __future__ import annotations

import errno
import os

from sqlalchemy.exc import OperationalError

from fedserver.errors import StorageError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FAILING = frozenset({errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_SQLITE_FULL = "database or disk is full"
_SQLITE_FAILING = ("disk i/o error", "readonly database", "unable to open database file")


def disk_trouble(error: BaseException) -> str:
    """Return what to tell people when an error came from the disk, "" when it did not."""
    if isinstance(error, StorageError):
        return f"the disk of the server is full: {error}; free space, it goes on by itself"
    if isinstance(error, OSError) and error.errno in _FULL:
        place = f" ({error.filename})" if error.filename else ""
        return (
            f"the disk of the server is full: {os.strerror(error.errno)}{place}; "
            f"free space, it goes on by itself"
        )
    if isinstance(error, OSError) and error.errno in _FAILING:
        place = f" ({error.filename})" if error.filename else ""
        return f"the server's disk fails: {os.strerror(error.errno)}{place}; it is tried again"
    if isinstance(error, OperationalError):
        said = str(error.orig)
        if _SQLITE_FULL in said:
            return f"the disk of the server is full: {said}; free space, it goes on by itself"
        if any(words in said.lower() for words in _SQLITE_FAILING):
            return f"the server's disk fails: {said}; it is tried again"
    return ""
