"""Waiting without sleeping blindly: a condition is polled until it holds, and there is always a bound."""

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["eventually"]

T = TypeVar("T")


def eventually(predicate: Callable[[], T], timeout: float = 10, what: str = "", interval: float = 0.02) -> T:
    """Call `predicate` every `interval` seconds until it returns something true, and return that.

    An AssertionError inside it means "not yet", as False does; any other exception is a failure at once. After
    `timeout` seconds an AssertionError tells what was waited for and the last answer.
    """
    deadline = time.monotonic() + timeout
    while True:
        last: object
        cause: AssertionError | None = None
        try:
            if answer := predicate():
                return answer
            last = answer
        except AssertionError as error:
            last, cause = error, error
        if time.monotonic() > deadline:
            what = what or getattr(predicate, "__name__", repr(predicate))
            raise AssertionError(f"not within {timeout} s: {what}; last answer: {last!r}") from cause
        time.sleep(interval)
