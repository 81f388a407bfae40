"""IPAM's arithmetic: one host number is one node's IPv4 and IPv6 address.

Number n means `prefix4[n]` and `prefix6[n]`, so the two families never disagree about who is who, and one row in the
database is one node's place. Which numbers are free is the store's knowledge; this module is pure.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from controller.problems import Kind, Refused
from controller.wire.base import Address, Prefix

__all__ = ["DEFAULT_PREFIX4", "FIRST_NUMBER", "AddressPlan", "PrefixError", "random_prefix6"]

# Inside RFC 6598 space, which no host on the internet has, and away from the parts of it that clouds use for
# themselves (100.64.0.0/15 by Kubernetes services, 100.100.0.0/16 by Alibaba Cloud and Tailscale's resolver).
DEFAULT_PREFIX4: Final = "100.88.0.0/16"
# 0 is the network's own address (in IPv6 the subnet-router anycast address, RFC 4291 section 2.6.1); 1 is kept for
# what the mesh itself will answer at, such as its resolver. The last IPv4 address is the broadcast address.
FIRST_NUMBER: Final = 2

_ULA: Final = IPv6Network("fd00::/8")


class PrefixError(ValueError):
    """A mesh prefix that cannot work; the message names it and says which can."""


def random_prefix6() -> Prefix:
    """A unique local /48 with a random global ID (RFC 4193 section 3.2)."""
    return str(IPv6Network((int(_ULA.network_address) | secrets.randbits(40) << 80, 48)))


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """The mesh's two prefixes and the numbers that both can express."""

    prefix4: IPv4Network
    prefix6: IPv6Network

    @classmethod
    def parse(cls, prefix4: str, prefix6: str) -> "AddressPlan":
        """Check the prefixes of a new mesh. Raises PrefixError."""
        try:
            four = IPv4Network(prefix4)
        except ValueError as error:
            raise PrefixError(
                f"{prefix4!r} is not an IPv4 prefix ({error}): write it like {DEFAULT_PREFIX4}"
            ) from error
        try:
            six = IPv6Network(prefix6)
        except ValueError as error:
            raise PrefixError(
                f"{prefix6!r} is not an IPv6 prefix ({error}): write it like fd12:3456:789a::/48"
            ) from error
        if not 8 <= four.prefixlen <= 29:
            raise PrefixError(f"{prefix4!r} is not a usable size: take a prefix length from 8 to 29")
        if four.is_multicast or four.is_loopback or four.is_link_local or four.is_unspecified:
            raise PrefixError(f"{prefix4!r} is not for hosts: take private (RFC 1918) or shared (RFC 6598) space")
        if not six.subnet_of(_ULA) or not 48 <= six.prefixlen <= 64:
            raise PrefixError(f"{prefix6!r} is not a unique local prefix: take a /48 (up to /64) inside fd00::/8")
        return cls(four, six)

    @property
    def last_number(self) -> int:
        """The highest number that a node can have."""
        return self.prefix4.num_addresses - 2

    @property
    def total(self) -> int:
        """How many nodes fit."""
        return self.last_number - FIRST_NUMBER + 1

    def addresses(self, number: int) -> tuple[Address, ...]:
        """The addresses of `number`, IPv4 first."""
        return str(self.prefix4[number]), str(self.prefix6[number])

    def contains(self, address: Address) -> bool:
        """True for an address inside either prefix."""
        parsed = ip_address(address)
        return parsed in (self.prefix6 if isinstance(parsed, IPv6Address) else self.prefix4)

    def requested(self, addresses: Iterable[Address]) -> int | None:
        """The number that `addresses` ask for, None when they ask for nothing.

        Raises Refused (ADDRESS_UNUSABLE) for an address outside the mesh, a reserved one, or two that disagree.
        """
        numbers = {address: self._number(address) for address in addresses}
        distinct = set(numbers.values())
        if len(distinct) > 1:
            first = next(iter(numbers))
            pair = " and ".join(self.addresses(numbers[first]))
            raise Refused(
                Kind.ADDRESS_UNUSABLE,
                f"{' and '.join(numbers)} do not belong together: a node has the same host number in both prefixes; "
                f"request {pair}, or only one of them",
            )
        return distinct.pop() if distinct else None

    def _number(self, address: Address) -> int:
        parsed = ip_address(address)
        prefix = self.prefix6 if isinstance(parsed, IPv6Address) else self.prefix4
        if parsed not in prefix:
            raise Refused(Kind.ADDRESS_UNUSABLE, f"{address} is outside the mesh's prefix {prefix}: request one inside")
        number = int(parsed) - int(prefix.network_address)
        if not FIRST_NUMBER <= number <= self.last_number:
            low, high = (str(prefix[n]) for n in (FIRST_NUMBER, self.last_number))
            raise Refused(Kind.ADDRESS_UNUSABLE, f"{address} is reserved: request one from {low} to {high}")
        return number
