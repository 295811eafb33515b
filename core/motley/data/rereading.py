"""Keeping what is read again and again.

A device reads its share once in a process, and shall not pay memory for the rest of the set. A
simulation reads the shares of many clients; the set then stays in memory from the second on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

T = TypeVar("T")


class Rereading:
    """Hands out what a reader returns, and keeps it once it was asked for twice."""

    def __init__(self) -> None:
        self._asked: set[Hashable] = set()
        self._kept: dict[Hashable, object] = {}

    def __call__(self, key: Hashable, read: Callable[[], T]) -> T:
        """Return what `read` gives for a key; the caller must not change it."""
        if key in self._kept:
            return cast(T, self._kept[key])
        found = read()
        if key in self._asked:
            self._kept[key] = found
        self._asked.add(key)
        return found
