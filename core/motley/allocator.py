"""How memory is handed out: settings that make large messages and large models cheap.

glibc asks the kernel for every block of 128 KiB or more and gives it back when it is freed. A frame
of a MiB is then 256 page faults, which take longer than copying it. Other C libraries are left
alone, and so is every process with `MOTLEY_ALLOCATOR=plain` in its environment.

Blocks of tens of MiB, as of many clients' models in one tensor, are better left to the kernel: kept
among smaller ones they break the heap into pieces, and a process grows to more than twice its size.
For them there are huge pages.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys

SWITCH = "MOTLEY_ALLOCATOR"
"""Environment variable; "plain" leaves the allocator as it is."""

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
"""Parameters of mallopt(3)."""
_SETTINGS = (
    (_MMAP_MAX, 0),  # no block comes from the kernel by itself
    (_TRIM_THRESHOLD, 1 << 30),  # and what is freed stays, up to here
    (_TOP_PAD, 16 << 20),  # the heap grows in steps, not block by block
)


def reuse_freed_memory(*, one_heap: bool = False) -> bool:
    """Let this process keep the memory that it frees for its next blocks; tell whether it does.

    Its resident size then stays at its high-water mark, until `give_back`. `one_heap`: threads
    share one heap, whose end alone `give_back` can return; for a process that computes little.
    """
    library = _glibc()
    if library is None:
        return False
    settings = (*_SETTINGS, (_ARENA_MAX, 1)) if one_heap else _SETTINGS
    taken = [library.mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(taken)


def use_huge_pages() -> None:
    """Let torch ask Linux for pages of 2 MiB for large tensors; called before the first tensor.

    Tensors that are made and freed in each step then cost hundreds of times fewer page faults.
    """
    if os.environ.get(SWITCH) != "plain":
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def give_back() -> None:
    """Return what is free to the kernel, after work that is not repeated soon."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    is_glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    if not is_glibc or os.environ.get(SWITCH) == "plain":
        return None
    library = ctypes.CDLL(None)
    library.malloc_trim.argtypes = [ctypes.c_size_t]
    return library
