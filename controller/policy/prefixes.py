"""Which named prefixes hold an address: one look-up for each prefix length in use, however many prefixes there are."""

import ipaddress
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping

from controller.wire.base import Address

from .document import Network

__all__ = ["PrefixTable"]


class PrefixTable:
    """Prefixes by name."""

    def __init__(self, prefixes: Mapping[str, Network]) -> None:
        # By (IP version, prefix length), then by the prefix's leading bits as a number.
        self._names: dict[tuple[int, int], dict[int, list[str]]] = {}
        for name, prefix in prefixes.items():
            table = self._names.setdefault((prefix.version, prefix.prefixlen), {})
            table.setdefault(_leading(prefix), []).append(name)
        self._sorted: dict[int, list[tuple[int, ...]]] = {
            version: sorted({_span(prefix) for prefix in prefixes.values() if prefix.version == version})
            for version in (4, 6)
        }
        self._free: dict[Network, Address | None] = {}

    def holding(self, addresses: Iterable[Address]) -> Iterator[str]:
        """The names of all prefixes that hold one of the addresses; a name may come twice."""
        for text in addresses if self._names else ():
            address = ipaddress.ip_address(text)
            number, bits = int(address), address.max_prefixlen
            for (version, length), names in self._names.items():
                if version == address.version:
                    yield from names.get(number >> (bits - length), ())

    def free_address(self, prefix: Network) -> Address | None:
        """The first address of `prefix` that no smaller prefix of the table holds; None when they cover it."""
        if prefix not in self._free:
            self._free[prefix] = self._search(prefix)
        return self._free[prefix]

    def _search(self, prefix: Network) -> Address | None:
        whole = first, last = _span(prefix)
        spans = self._sorted[prefix.version]
        # Prefixes are nested or apart, and sorted by their beginning: the first gap is the answer.
        for low, high in spans[bisect_left(spans, whole[:1]) :]:
            if low > first:
                break
            if (low, high) != whole and high <= last and high >= first:
                first = high + 1
        if first > last:
            return None
        return str(ipaddress.IPv4Address(first) if prefix.version == 4 else ipaddress.IPv6Address(first))


def _leading(prefix: Network) -> int:
    return int(prefix.network_address) >> (prefix.max_prefixlen - prefix.prefixlen)


def _span(prefix: Network) -> tuple[int, int]:
    return int(prefix.network_address), int(prefix.broadcast_address)
