"""Tells when this host slept, or its clock was set forward, which looks the same from here: an event, no polling.

While a host sleeps, the clock that timers go by stands still; NATs, firewalls and the controller forget it meanwhile.
"""

import asyncio
import ctypes
import errno
import os
import time
from collections.abc import AsyncIterator
from typing import Final

__all__ = ["naps"]

# include/uapi/linux/timerfd.h
_TFD_TIMER_ABSTIME: Final = 1
_TFD_TIMER_CANCEL_ON_SET: Final = 2  # a wake from suspend is one, too (timerfd_resume in fs/timerfd.c)
_NEVER: Final = 1 << 40  # seconds since the epoch
_NOTICED: Final = 10.0  # seconds: less than any NAT remembers a flow


class _Itimerspec(ctypes.Structure):
    """struct itimerspec, with its two struct timespec."""

    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("value_seconds", ctypes.c_long),
        ("value_nanoseconds", ctypes.c_long),
    )


async def naps(least: float = _NOTICED) -> AsyncIterator[float]:
    """How many seconds it was each time, if at least so many. Raises OSError when the kernel refuses the timer."""
    woken, loop = asyncio.Event(), asyncio.get_running_loop()
    timer = _open()
    loop.add_reader(timer, woken.set)
    try:
        ahead = _ahead()
        while True:
            await woken.wait()
            _take(timer)
            woken.clear()
            before, ahead = ahead, _ahead()
            if ahead - before >= least:
                yield ahead - before
    finally:
        loop.remove_reader(timer)
        os.close(timer)


def _ahead() -> float:
    """Seconds by which the clock that can be set is ahead of the one that stands still while the host sleeps."""
    return time.time() - time.monotonic()


def _open() -> int:
    """A timer that never ends but becomes readable when the clock is set. Python has timerfd_create since 3.13."""
    libc = ctypes.CDLL(None, use_errno=True)
    timer: int = libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
    if timer < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    until = _Itimerspec(0, 0, _NEVER, 0)
    flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
    if libc.timerfd_settime(timer, flags, ctypes.byref(until), None) != 0:
        code = ctypes.get_errno()
        os.close(timer)
        raise OSError(code, "timerfd_settime")
    return timer


def _take(timer: int) -> None:
    """Take the news, so that the timer is readable no more."""
    try:
        os.read(timer, 8)
    except OSError as error:
        if error.errno not in {errno.ECANCELED, errno.EAGAIN}:
            raise
