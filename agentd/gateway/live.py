"""The exchanges that are under way: how many each caller has, which are silent, which are no longer allowed.

Knows who and since when; how an exchange is told to end or to say something is the exchange's own.
"""

from collections.abc import Callable
from typing import Protocol

from .types import Call, Caller

__all__ = ["Live", "Running"]


class Running(Protocol):
    """An exchange that has been passed on."""

    caller: Caller
    call: Call

    def keep_alive(self, now: float) -> None:
        """Break a silence that has lasted too long; `now` is the loop's time."""
        ...

    def revoke(self, why: str) -> None:
        """End now, telling the client if the answer's form allows it."""
        ...


class Live:
    """Every running exchange of one process."""

    def __init__(self) -> None:
        self._running: set[Running] = set()
        self._counts: dict[tuple[str, str], int] = {}

    def __len__(self) -> int:
        return len(self._running)

    def count(self, caller: Caller, service: str) -> int:
        """How many of the service's exchanges this node has under way."""
        return self._counts.get((caller.node_id, service), 0)

    def add(self, running: Running) -> None:
        self._running.add(running)
        key = (running.caller.node_id, running.call.service)
        self._counts[key] = self._counts.get(key, 0) + 1

    def discard(self, running: Running) -> None:
        if running in self._running:
            self._running.discard(running)
            key = (running.caller.node_id, running.call.service)
            left = self._counts.pop(key) - 1
            if left:
                self._counts[key] = left

    def keep_alive(self, now: float) -> None:
        """Give every silent stream a sign of life."""
        for running in list(self._running):
            running.keep_alive(now)

    def callers(self) -> set[Caller]:
        """Everybody who has something under way."""
        return {running.caller for running in self._running}

    def revoke(self, why: str, which: Callable[[Running], bool]) -> int:
        """End those that `which` names; returns how many."""
        ended = [running for running in self._running if which(running)]
        for running in ended:
            running.revoke(why)
        return len(ended)
