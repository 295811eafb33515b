"""Memory of the training process: its limit, its peak, and telling its errors from others."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

_PHRASES = (
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "out of memory",
    "can't start new thread",
    "failed to map segment",
    "unable to allocate",
    "resource temporarily unavailable",
)
MIB = 1024**2


def set_data_limit(limit: int) -> None:
    """Limit this process's data (heap, stacks, private mappings) to `limit` bytes; Linux alone."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def peak_bytes() -> int:
    """Return the largest resident size that this process has had."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def tells_of_memory(text: str) -> bool:
    """Whether an error's text says that memory ran out."""
    lowered = text.lower()
    return any(phrase in lowered for phrase in _PHRASES)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came from, says that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError | ImportError | OSError) and tells_of_memory(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def out_of_memory_text(limit: int, peak: int) -> str:
    """Return what the operator and the owner read when training ran out of memory."""
    seen = f"it had {peak / MIB:.0f} MiB resident at its peak" if peak else "its peak is unknown"
    if limit:
        return (
            f"training needs more memory than --memory-limit {limit / MIB:.0f}M lets it have "
            f"({seen}); raise the limit, or give this client a tier with a smaller model"
        )
    return (
        f"this device has too little memory for the task ({seen}); close other programs, or give "
        f"this client a tier with a smaller model"
    )


def kernel_oom_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """Return how many processes the kernel has killed for want of memory; 0 where unknown."""
    try:
        lines = vmstat.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
