"""How often a caller may do something: token buckets keyed on who it is, never on a connection or session.

Pure but for its counters; the caller supplies the time. Bounded: a bucket that is full again is forgotten.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from controller.wire.mcp import Rate

__all__ = ["Limiter"]

_MOST_BUCKETS: Final = 65_536


@dataclass(slots=True)
class _Bucket:
    tokens: float
    time: float
    rate: Rate


class Limiter:
    """Counts calls under rates. It outlives policies: applying a new one must not refill anybody's bucket."""

    def __init__(self, most_buckets: int = _MOST_BUCKETS) -> None:
        self._buckets: dict[Hashable, _Bucket] = {}
        self._cooling: dict[Hashable, float] = {}
        self._most = most_buckets

    def take(self, key: Hashable, rate: Rate, now: float) -> float:
        """Take one token. 0.0: granted; otherwise the seconds until one is there (nothing was taken)."""
        bucket = self._refilled(key, rate, now)
        if bucket.tokens >= 1.0:
            bucket.tokens -= 1.0
            return 0.0
        return (1.0 - bucket.tokens) * rate.seconds / rate.calls

    def _refilled(self, key: Hashable, rate: Rate, now: float) -> _Bucket:
        bucket = self._buckets.get(key)
        if bucket is None or bucket.rate != rate:
            if len(self._buckets) >= self._most:
                self._forget(now)
            spent = 0.0 if bucket is None else bucket.rate.calls - bucket.tokens
            bucket = self._buckets[key] = _Bucket(max(0.0, rate.calls - spent), now, rate)
        per_second = rate.calls / rate.seconds
        # A clock that was set back refills nothing and takes nothing away.
        bucket.tokens = min(float(rate.calls), bucket.tokens + max(0.0, now - bucket.time) * per_second)
        bucket.time = now
        return bucket

    def take_each(self, prices: Sequence[tuple[Hashable, Rate]], now: float) -> bool:
        """Take one token under each of these rates, if each has one. False: nothing was taken."""
        if len(prices) > 1 and any(self._refilled(key, rate, now).tokens < 1.0 for key, rate in prices):
            return False
        return all(self.take(key, rate, now) == 0.0 for key, rate in prices)

    def give_back(self, prices: Sequence[tuple[Hashable, Rate]]) -> None:
        """Undo a `take_each` that took."""
        for key, rate in prices:
            bucket = self._buckets.get(key)
            if bucket is not None:
                bucket.tokens = min(float(rate.calls), bucket.tokens + 1.0)

    def cool(self, key: Hashable, seconds: float, now: float) -> None:
        """Refuse everything of `key` for `seconds`; a breach during a cool-down does not lengthen it."""
        if seconds > 0 and self.cooling(key, now) == 0.0:
            if len(self._cooling) >= self._most:
                self._forget(now)
            self._cooling[key] = now + seconds

    def cooling(self, key: Hashable, now: float) -> float:
        """Seconds until the cool-down of `key` is over; 0.0 when there is none."""
        until = self._cooling.get(key)
        if until is None:
            return 0.0
        if until <= now:
            del self._cooling[key]
            return 0.0
        return until - now

    def _forget(self, now: float) -> None:
        """Drop what has no effect any more; when that is not enough, the buckets that were longest unused."""
        self._cooling = {key: until for key, until in self._cooling.items() if until > now}
        for key in [
            key
            for key, bucket in self._buckets.items()
            if (now - bucket.time) * bucket.rate.calls / bucket.rate.seconds + bucket.tokens >= bucket.rate.calls
        ]:
            del self._buckets[key]
        if len(self._buckets) >= self._most:
            oldest = sorted(self._buckets, key=lambda key: self._buckets[key].time)
            for key in oldest[: self._most // 8]:
                del self._buckets[key]
