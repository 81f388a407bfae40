"""The exchanges that are under way: how many each caller has, which are silent, which are no longer allowed.

Knows who and since when; how an exchange is told to end or to say something is the exchange's own.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from .types import Call, Caller

__all__ = ["Live", "Running"]


class Running(Protocol):
    """An exchange that has been passed on."""

    @property
    def caller(self) -> Caller: ...

    @property
    def call(self) -> Call: ...

    def keep_alive(self, now: float) -> None:
        """Break a silence that has lasted too long; `now` is the loop's time."""
        ...

    def revoke(self, why: str) -> None:
        """End now, telling the client if the answer's form allows it."""
        ...


class Live:
    """Every running exchange of one process."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], set[Running]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._running.values()))

    def count(self, caller: Caller, service: str) -> int:
        """How many of the service's exchanges this node has under way."""
        return len(self._running.get((caller.node_id, service), ()))

    def add(self, running: Running, service: str, most: int | None = None) -> bool:
        """False: the caller has `most` of the service's exchanges under way already, and it was not added."""
        key = (running.caller.node_id, service)
        same = self._running.get(key)
        if same is None:
            same = self._running[key] = set()
        if most is not None and len(same) >= most:
            return False
        same.add(running)
        return True

    def discard(self, running: Running, service: str) -> None:
        key = (running.caller.node_id, service)
        same = self._running.get(key)
        if same is not None:
            same.discard(running)
            if not same:
                del self._running[key]

    def __iter__(self) -> Iterator[Running]:
        return iter([running for same in self._running.values() for running in same])

    def keep_alive(self, now: float) -> None:
        """Give every silent stream a sign of life."""
        for running in self:
            running.keep_alive(now)

    def callers(self) -> set[Caller]:
        """Everybody who has something under way."""
        return {running.caller for running in self}

    def revoke(self, why: str, which: Callable[[Running], bool]) -> int:
        """End those that `which` names; returns how many."""
        ended = [running for running in self if which(running)]
        for running in ended:
            running.revoke(why)
        return len(ended)
