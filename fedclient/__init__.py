"""The Motley client daemon: checks in, trains in a worker process, sends updates."""

from __future__ import annotations

import sys

if "rich" not in sys.modules:
    # structlog takes rich along for coloured tracebacks: 5 MB in the daemon and in each training
    # process. Commands that print tables import it themselves, later.
    sys.modules["rich"] = None  # type: ignore[assignment]
    import structlog.dev  # noqa: F401

    del sys.modules["rich"]
