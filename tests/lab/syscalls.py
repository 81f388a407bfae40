"""System calls that Python has no function for, through libc; one that fails raises an OSError that names it."""

import ctypes
import os
from typing import Final

__all__ = ["called", "mount"]

_libc: Final = ctypes.CDLL(None, use_errno=True)


def called(function: str, *arguments: object) -> None:
    """Call it for its effect. Raises OSError."""
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}{arguments}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int = 0) -> None:
    """mount(2). Raises OSError."""
    called("mount", source.encode(), target.encode(), kind.encode() if kind else None, flags, None)
