"""Reads the named counters of one nftables table over netlink. Knows no meaning of their names."""

import struct
from typing import Final

from .netlink import NetlinkSocket, attribute, attributes

__all__ = ["read_counters"]

# include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h
_NFT_MSG_GETOBJ: Final = 10 << 8 | 19
_NFTA_OBJ_TABLE: Final = 1
_NFTA_OBJ_NAME: Final = 2
_NFTA_OBJ_TYPE: Final = 3
_NFTA_OBJ_DATA: Final = 4
_NFT_OBJECT_COUNTER: Final = 1
_NFTA_COUNTER_PACKETS: Final = 2
_NFPROTO_INET: Final = 1
_NFGENMSG: Final = struct.Struct("=BBH")


def read_counters(netlink: NetlinkSocket, table: str) -> dict[str, int]:
    """Packets by counter name of `table` in family inet; none where there is no such table. Raises NetlinkError."""
    payload = (
        _NFGENMSG.pack(_NFPROTO_INET, 0, 0)
        + attribute(_NFTA_OBJ_TABLE, table.encode() + b"\0")
        + attribute(_NFTA_OBJ_TYPE, struct.pack(">I", _NFT_OBJECT_COUNTER))
    )
    found: dict[str, int] = {}
    for answer in netlink.dump(_NFT_MSG_GETOBJ, payload):
        name, packets = "", 0
        for kind, start, end in attributes(answer, _NFGENMSG.size):
            if kind == _NFTA_OBJ_NAME:
                name = answer[start:end].rstrip(b"\0").decode(errors="replace")
            elif kind == _NFTA_OBJ_DATA:
                packets = _packets(answer, start, end)
        found[name] = packets
    return found


def _packets(answer: bytes, start: int, end: int) -> int:
    for kind, begin, stop in attributes(answer, start, end):
        if kind == _NFTA_COUNTER_PACKETS:
            return int.from_bytes(answer[begin:stop], "big")
    return 0
