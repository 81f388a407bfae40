"""Bounds of one server: sizes and times. None of them is on how long an answer may take."""

from dataclasses import dataclass

__all__ = ["HttpLimits"]


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Sizes in bytes, times in seconds.

    `head_seconds`: from the first byte of a head to its end. `body_pause`: the longest silence in a body.
    `body_seconds`: for a body that is read whole, from its head to its end. `gather_seconds`: for the whole of a small
    body behind a known head, before it is waited for in the ordinary way. `stalled`: how long a client may refuse to
    take an answer's bytes. `tick`: how often times are looked at, so they hold to within one.
    """

    header_bytes: int = 32 * 1024
    header_count: int = 128
    target_bytes: int = 8 * 1024
    buffered: int = 256 * 1024  # of a streamed body, either way, before its sender is held back
    pipelined: int = 16
    connections: int = 8192
    head_seconds: float = 10.0
    body_pause: float = 20.0
    body_seconds: float = 120.0
    idle_seconds: float = 75.0
    gather_seconds: float = 1.0
    stalled: float = 300.0
    linger: float = 2.0
    tick: float = 1.0
