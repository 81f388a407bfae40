"""Looks one key up in a named set or map of any nftables table, or reads what a set counted, over netlink.

Knows how the kernel writes keys and verdicts, and no table's meaning.
"""

import errno
import ipaddress
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from .netlink import NetlinkError, NetlinkSocket, attribute, attributes

__all__ = ["CountedElement", "NamedSet", "UnknownKeyError", "counted_elements", "find_element"]

# include/uapi/linux/netfilter.h, nfnetlink.h, nf_tables.h
_FAMILIES: Final = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
_NFT_MSG_GETSETELEM: Final = 10 << 8 | 13
_NFTA_LIST_TABLE: Final = 1
_NFTA_LIST_SET: Final = 2
_NFTA_LIST_ELEMENTS: Final = 3
_NFTA_LIST_ELEM: Final = 1
_NFTA_ELEM_KEY: Final = 1
_NFTA_ELEM_DATA: Final = 2
_NFTA_ELEM_EXPR: Final = 7
_NFTA_EXPR_DATA: Final = 2
_NFTA_COUNTER_BYTES: Final = 1
_NFTA_COUNTER_PACKETS: Final = 2
_NFTA_DATA_VALUE: Final = 1
_NFTA_DATA_VERDICT: Final = 2
_NFTA_VERDICT_CODE: Final = 1
_NFTA_VERDICT_CHAIN: Final = 2
_NLA_F_NESTED: Final = 0x8000
_NFGENMSG: Final = struct.Struct("=BBH")
_PROTOCOLS: Final = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}
# NF_DROP, NF_ACCEPT (netfilter.h) and the verdicts of nf_tables.h
_VERDICTS: Final = {0: "drop", 1: "accept", -1: "continue", -3: "jump", -4: "goto", -5: "return"}


class UnknownKeyError(Exception):
    """A key of a type that is not written here, or a value that does not fit its type."""


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A set or map of a table, with the types of its key's parts."""

    family: str
    table: str
    name: str
    types: tuple[str, ...]


def find_element(netlink: NetlinkSocket, where: NamedSet, key: Sequence[object]) -> tuple[str, str] | None:
    """The element of this key, None when there is none: a map's verdict and its chain, ("", "") without a verdict.

    Raises UnknownKeyError; NetlinkError when the kernel cannot be asked.
    """
    value = attribute(_NFTA_DATA_VALUE, _encoded(where.types, key))
    element = attribute(_NFTA_LIST_ELEM | _NLA_F_NESTED, attribute(_NFTA_ELEM_KEY | _NLA_F_NESTED, value))
    payload = (
        _NFGENMSG.pack(_FAMILIES[where.family], 0, 0)
        + attribute(_NFTA_LIST_TABLE, where.table.encode() + b"\0")
        + attribute(_NFTA_LIST_SET, where.name.encode() + b"\0")
        + attribute(_NFTA_LIST_ELEMENTS | _NLA_F_NESTED, element)
    )
    try:
        answer = netlink.ask(_NFT_MSG_GETSETELEM, payload)
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    for path in _inside(answer, _NFGENMSG.size, len(answer), (_NFTA_LIST_ELEMENTS, _NFTA_LIST_ELEM, _NFTA_ELEM_DATA)):
        return _verdict(answer, *path)
    return ("", "")


@dataclass(frozen=True, slots=True)
class CountedElement:
    """A key of a set as the kernel writes it, and what its counter says."""

    key: bytes
    packets: int
    bytes: int


def counted_elements(netlink: NetlinkSocket, family: str, table: str, name: str) -> Iterator[CountedElement]:
    """The elements of a set whose elements count. Raises NetlinkError, ENOENT where there is no such set."""
    payload = (
        _NFGENMSG.pack(_FAMILIES[family], 0, 0)
        + attribute(_NFTA_LIST_TABLE, table.encode() + b"\0")
        + attribute(_NFTA_LIST_SET, name.encode() + b"\0")
    )
    for answer in netlink.dump(_NFT_MSG_GETSETELEM, payload):
        for element in _inside(answer, _NFGENMSG.size, len(answer), (_NFTA_LIST_ELEMENTS, _NFTA_LIST_ELEM)):
            keys = _inside(answer, *element, (_NFTA_ELEM_KEY, _NFTA_DATA_VALUE))
            counts = _inside(answer, *element, (_NFTA_ELEM_EXPR, _NFTA_EXPR_DATA))
            said = {kind: answer[begin:end] for place in counts for kind, begin, end in attributes(answer, *place)}
            for begin, end in keys:
                yield CountedElement(
                    answer[begin:end],
                    int.from_bytes(said.get(_NFTA_COUNTER_PACKETS, b""), "big"),
                    int.from_bytes(said.get(_NFTA_COUNTER_BYTES, b""), "big"),
                )


def _inside(data: bytes, start: int, end: int, path: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where the attributes of this path begin and end."""
    found = [(start, end)]
    for wanted in path:
        found = [(begin, stop) for outer in found for kind, begin, stop in attributes(data, *outer) if kind == wanted]
    return found


def _verdict(data: bytes, start: int, end: int) -> tuple[str, str]:
    code, chain = "", ""
    for begin, stop in _inside(data, start, end, (_NFTA_DATA_VERDICT,)):
        for kind, first, last in attributes(data, begin, stop):
            if kind == _NFTA_VERDICT_CODE:
                number = int.from_bytes(data[first:last], "big", signed=True)
                code = _VERDICTS.get(number, str(number))
            elif kind == _NFTA_VERDICT_CHAIN:
                chain = data[first:last].rstrip(b"\0").decode(errors="replace")
    return code, chain


def _encoded(types: Sequence[str], key: Sequence[object]) -> bytes:
    if not types or len(types) != len(key):
        raise UnknownKeyError(f"a key of {len(key)} parts for the type {' . '.join(types) or '(not told)'}")
    parts = [_part(kind, value) for kind, value in zip(types, key, strict=True)]
    if len(parts) == 1:
        return parts[0]
    return b"".join(part + b"\0" * (-len(part) % 4) for part in parts)  # each in registers of 4 bytes


def _part(kind: str, value: object) -> bytes:
    try:
        match kind, value:
            case (("ipv4_addr" | "ipv6_addr"), str()):
                return ipaddress.ip_address(value).packed
            case "inet_service", int():
                return value.to_bytes(2, "big")
            case "inet_proto", str():
                return bytes([_PROTOCOLS[value]])
            case "ifname", str():
                return value.encode().ljust(16, b"\0")
    except (ValueError, KeyError, OverflowError) as error:
        raise UnknownKeyError(f"{value!r} is no {kind}") from error
    raise UnknownKeyError(f"{value!r} as {kind}")
