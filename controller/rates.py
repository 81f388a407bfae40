"""How often each client, key or node may do something: one count for all limits, in bounded memory.

Pure: knows no HTTP and no clock, and keeps no secrets: who counts by one gives its hash.
"""

import ipaddress
import math
from collections import OrderedDict
from typing import Final

__all__ = ["Rate", "client_key"]

_KEYS: Final = 10_000  # some 1.5 MB


class Rate:
    """At most `burst` at once, and `per_second` in the long run, for each key; `per_second` 0 is no limit.

    The generic cell rate algorithm (ITU-T I.371): one number a key, the time at which it has all of its burst again.
    When there are more keys than are kept, those seen longest ago are forgotten, and have their whole burst again.
    """

    def __init__(self, per_second: float, burst: int, keys: int = _KEYS) -> None:
        self._pause = 1 / per_second if per_second else 0.0
        self._burst, self._keys = burst, keys
        self._whole: OrderedDict[str, float] = OrderedDict()  # by key; seen longest ago first

    def wait(self, key: str, now: float) -> int:
        """Seconds, rounded up, until this key may once more; 0 when it may. `now` is monotonic, in seconds."""
        whole = max(self._whole.get(key, now), now)
        # A billionth less: what was waited for as told must not fail for a rounding error.
        return max(math.ceil(whole + self._pause - self._burst * self._pause - now - 1e-9), 0)

    def take(self, key: str, now: float) -> int:
        """Count one, if the key may; answers like `wait` did before."""
        wait = self.wait(key, now)
        if not wait and self._pause:
            self._whole[key] = max(self._whole.get(key, now), now) + self._pause
            self._whole.move_to_end(key)
            if len(self._whole) > self._keys:
                self._whole.popitem(last=False)
        return wait

    def __len__(self) -> int:
        return len(self._whole)


def client_key(address: str) -> str:
    """What a client is counted by: its IPv4 address, or the /64 of its IPv6 address, which one of them has at least."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    mapped = parsed.ipv4_mapped
    return str(mapped or ipaddress.ip_network((int(parsed), 64), strict=False))
