"""How often each client may fail to authenticate: a count by address in bounded memory. Pure; knows no HTTP."""

import ipaddress
import math
from collections import OrderedDict
from typing import Final

__all__ = ["FailedAttempts"]

_WINDOW: Final = 60.0  # seconds
_FAILURES: Final = 20  # in a window: a script with an old token is told so often enough, and a guesser nothing more
_ADDRESSES: Final = 10_000  # some 2 MB


class FailedAttempts:
    """Counts failures in windows that begin with an address's first one; at `most`, the rest of the window is closed.

    IPv6 clients count by their /64, which is what one of them has at least. When there are too many addresses, the ones
    whose windows began first are forgotten: guesses from that many are not slowed by counting.
    """

    def __init__(self, most: int = _FAILURES, addresses: int = _ADDRESSES) -> None:
        self._most, self._addresses = most, addresses
        self._failed: OrderedDict[str, tuple[float, int]] = OrderedDict()  # first failure, failures; oldest first

    def wait(self, client: str, now: float) -> int:
        """Seconds, rounded up, until this client may try again; 0 when it may. `now` is monotonic, in seconds."""
        began, failures = self._failed.get(_key(client), (now, 0))
        left = began + _WINDOW - now
        return math.ceil(left) if failures >= self._most and left > 0 else 0

    def failed(self, client: str, now: float) -> None:
        """One more failure of this client."""
        key = _key(client)
        began, failures = self._failed.get(key, (now, 0))
        if now - began >= _WINDOW:
            del self._failed[key]
            began, failures = now, 0
        self._failed[key] = began, failures + 1
        if len(self._failed) > self._addresses:
            self._failed.popitem(last=False)

    def __len__(self) -> int:
        return len(self._failed)


def _key(client: str) -> str:
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address), 64), strict=False))
