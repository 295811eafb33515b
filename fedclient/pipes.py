"""The standard streams of a child process, kept apart from what user code prints.

The child speaks to its parent over descriptors 0 and 1. User code (a workload) prints, reads
input and starts processes of its own; none of that may reach the conversation.
"""

from __future__ import annotations

import os
import sys
from typing import BinaryIO


def claim_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """Return (from parent, to parent); standard input is then empty, output goes to stderr."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    os.dup2(2, 1)
    return requests, replies
