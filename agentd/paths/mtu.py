"""How large a packet for a peer may be, found by questions of given sizes. Pure: who asks is the caller's.

Packetization Layer Path MTU Discovery (RFC 4821, RFC 8899): what answers passes, and nothing relies on ICMP, which many
networks drop. A question is one piece (DF), as long as WireGuard's own packet would be for an inner packet of that
size. WireGuard's packets may be cut into pieces (no DF, drivers/net/wireguard/socket.c); but many a NAT or firewall
drops pieces, so none may be needed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

__all__ = ["Ask", "interval", "rungs", "search", "wireguard_size"]

Ask = Callable[[int], Awaitable[bool]]  # an inner packet's size in bytes -> did an answer come in time?

_AGAIN: Final = 3  # RFC 8899 section 5.1.2, MAX_PROBES: what that many losses are, is no accident
_STEP: Final = 20  # bytes
_IPV6_LEAST: Final = 1200  # an IPv6 path of 1280 bytes carries that much (RFC 8200 section 5)
_LEAST: Final = (1000, 576)  # IPv4 paths may have less
# Seconds. RFC 8899 has 600 to look for more (PMTU_RAISE_TIMER), and less to see that it became less.
_CONFIRM: Final = 60.0
_EACH: Final = 1.0  # with many peers, so that all together ask once a second


def wireguard_size(inner: int) -> int:
    """Bytes of UDP payload for an inner packet of that size: type, receiver and counter before it, a tag after it."""
    return inner + 32


def rungs(whole: int) -> tuple[int, ...]:
    """The sizes that are tried, largest first. `whole` is the link's own MTU."""
    usual = (*range(1440, _IPV6_LEAST - 1, -_STEP), *_LEAST)
    return (whole, *(size for size in usual if size < whole))


def interval(peers: int) -> float:
    """Seconds until a peer's size is looked at again."""
    return max(_CONFIRM, _EACH * peers)


async def search(ask: Ask, first: int, whole: int) -> int | None:
    """The largest of `rungs(whole)` that passes, None when nothing does: then the path is away, not narrow.

    `first` is asked alone before: a path that is as it was costs one question.
    """
    if await _passes(ask, first):
        return first
    sizes = rungs(whole)
    passed = await asyncio.gather(*(_passes(ask, size) for size in sizes))
    return max((size for size, through in zip(sizes, passed, strict=True) if through), default=None)


async def _passes(ask: Ask, size: int) -> bool:
    for _ in range(_AGAIN):
        if await ask(size):
            return True
    return False
