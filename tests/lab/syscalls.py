"""System calls that Python 3.11 has no function for, through libc; one that fails raises an OSError that names it.

And a thread of its own for those that change the thread for good.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

__all__ = [
    "CLONE_FS",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWUTS",
    "MNT_DETACH",
    "MS_BIND",
    "MS_PRIVATE",
    "MS_REC",
    "MS_SHARED",
    "called",
    "mount",
    "on_a_thread",
]

T = TypeVar("T")
CLONE_FS: Final = 0x00000200
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWNET: Final = 0x40000000
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MS_SHARED: Final = 0x100000
MNT_DETACH: Final = 2
_libc: Final = ctypes.CDLL(None, use_errno=True)


def called(function: str, *arguments: object) -> None:
    """Call it for its effect. Raises OSError."""
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}{arguments}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int = 0) -> None:
    """mount(2). Raises OSError."""
    called("mount", source.encode(), target.encode(), kind.encode() if kind else None, flags, None)


def on_a_thread(function: Callable[[], T]) -> T:
    """Run it on a thread of its own, which ends with it; returns and raises what it does."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(function).result()
