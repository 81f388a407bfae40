"""How much one host asks and answers when all has settled, in simulated time."""

import itertools
import math
from typing import Final

from agentd.paths.checks import Checks
from agentd.paths.choose import Chooser
from agentd.paths.prefer import Preference

__all__ = ["packets_per_second"]

_SETTLED: Final = 1800.0  # seconds
_END: Final = 3600.0
_RELAYS: Final = {"r1": 1.0, "r2": 2.0}  # a home and a spare, asked that often


def packets_per_second(peers: int, doubts: float = 0.0) -> float:
    """What a host sends that has so many peers, each second one of them reached by way of a relay alone.

    `doubts`: how often in a second one of the peers does not answer to what is sent to it.
    """
    checks = Checks(Preference(Chooser([]), lambda endpoint: 0.02 if endpoint.startswith("[fd1") else None))
    checks.watched = _RELAYS
    known: dict[str, tuple[str, ...]] = {node: (f"198.51.100.{n}:51820",) for n, node in enumerate(_RELAYS, 1)}
    for n in range(peers):
        known[f"n{n}"] = (f"203.0.113.{n % 250}:{1000 + n}", f"[fd11::{n:x}]:51820", f"[fd12::{n:x}]:51820")
    checks.meet(known, 0)
    deaf = {known[f"n{n}"][0] for n in range(1, peers, 2)}
    fresh = (n.to_bytes(12, "big") for n in itertools.count())
    now, asked, answered = 0.0, 0, 0
    doubted = itertools.cycle(node for node in known if node not in _RELAYS)
    doubt_at = 1 / doubts if doubts else math.inf
    while now < _END:
        wake = checks.wake_at()
        assert wake is not None
        now = max(now, min(wake, doubt_at))
        if doubt_at <= now:
            checks.doubt(next(doubted), now)
            doubt_at += 1 / doubts
        for probe in checks.due(fresh, now):
            asked += now > _SETTLED
            answered += (
                now > _SETTLED and probe.peer not in _RELAYS
            )  # peers ask as often as they are asked; relays do not
            if probe.endpoint not in deaf:
                checks.answered(probe.transaction, probe.endpoint, now)
    return (asked + answered) / (_END - _SETTLED)
