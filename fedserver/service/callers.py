"""Who calls: the name in a message against the certificate of the connection."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedserver.service.status import Context


class Callers:
    """Lets a call of a client in, or refuses it."""

    @contextlib.contextmanager
    def admitted(self, context: Context, name: str) -> Iterator[None]:
        """Hold a call of the client `name`. Without certificates every name is believed."""
        yield
