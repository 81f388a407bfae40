"""One netlink socket: requests out, answers or errors back. Knows framing and acknowledgement, no family's messages.

It blocks, on purpose. The kernel does the work of a netlink request inside send(), in the caller's context; when send()
returns, the answer is already queued. An asynchronous socket would wait exactly as long, and cost more.
"""

import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

__all__ = [
    "NLM_F_ACK",
    "NLM_F_CREATE",
    "NLM_F_DUMP",
    "NLM_F_EXCL",
    "NLM_F_REPLACE",
    "NLM_F_REQUEST",
    "NetlinkError",
    "NetlinkSocket",
    "attribute",
    "attributes",
    "messages",
]

# include/uapi/linux/netlink.h
NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_REPLACE: Final = 0x100
NLM_F_DUMP: Final = 0x300
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
_NLM_F_DUMP_INTR: Final = 0x10
_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLMSGERR_ATTR_MSG: Final = 1
_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_NETLINK_DROP_MEMBERSHIP: Final = 2
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NETLINK_GET_STRICT_CHK: Final = 12
_SO_RCVBUFFORCE: Final = 33  # asm-generic; needs CAP_NET_ADMIN, which is what we have
_TYPE_MASK: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_RECEIVE: Final = 64 * 1024  # the kernel fills dumps up to the reader's buffer, 32 KiB at most
_RECEIVE_TIMEOUT: Final = struct.pack("@ll", 10, 0)
_DUMP_ATTEMPTS: Final = 8

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12
NETLINK_GENERIC: Final = 16


class NetlinkError(OSError):
    """The kernel's refusal: an errno, with its own words where it gave any (extended acknowledgement)."""


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to 4 bytes (struct nlattr)."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + b"\0" * (-len(payload) % 4)


def attributes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
    """The attributes in `data[start:end]` as (type without flags, payload start, payload end)."""
    stop = len(data) if end is None else end
    while start + 4 <= stop:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4 or start + length > stop:
            raise NetlinkError(errno.EBADMSG, "the kernel sent a damaged netlink attribute")
        yield kind & _TYPE_MASK, start + 4, start + length
        start += (length + 3) & ~3


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The messages in one datagram as (type, flags, sequence number, payload)."""
    start = 0
    while start + _HEADER.size <= len(data):
        length, kind, flags, sequence, _port = _HEADER.unpack_from(data, start)
        if length < _HEADER.size or start + length > len(data):
            raise NetlinkError(errno.EBADMSG, "the kernel sent a damaged netlink message")
        yield kind, flags, sequence, data[start + _HEADER.size : start + length]
        start += (length + 3) & ~3


class NetlinkSocket:
    """A socket of one netlink protocol in the network namespace of the thread that opens it."""

    def __init__(self, protocol: int, *, receive_buffer: int = 1 << 20) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _RECEIVE_TIMEOUT)
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise
        self._sequence = itertools.count(1)
        self.writes = 0  # requests that asked for a change

    def fileno(self) -> int:
        """For an event loop."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close it; idempotent."""
        self._socket.close()

    def join(self, group: int) -> None:
        """Receive a multicast group's messages."""
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def leave(self, group: int) -> None:
        """Stop receiving a multicast group's messages."""
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_DROP_MEMBERSHIP, group)

    def pending(self) -> Iterator[bytes]:
        """The datagrams that are queued now. Raises OSError(ENOBUFS) once when the kernel had to drop some."""
        while True:
            try:
                yield self._socket.recv(_RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return

    def write(self, kind: int, flags: int, payload: bytes) -> None:
        """Ask for a change and wait for its acknowledgement. Raises NetlinkError."""
        self.writes += 1
        sequence = self._send(kind, NLM_F_REQUEST | NLM_F_ACK | flags, payload)
        for _ in self._answers(sequence):
            pass

    def ask(self, kind: int, payload: bytes) -> bytes:
        """Ask for one object and return its message. Raises NetlinkError."""
        sequence = self._send(kind, NLM_F_REQUEST, payload)
        for _flags, answer in self._answers(sequence, single=True):
            return answer
        raise NetlinkError(errno.ENOMSG, "the kernel gave no answer")

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """Ask for all objects and return their messages. Raises NetlinkError.

        A dump that a change interrupted (NLM_F_DUMP_INTR) may lack objects or hold one twice: it is taken again.
        """
        for _ in range(_DUMP_ATTEMPTS):
            sequence = self._send(kind, NLM_F_REQUEST | NLM_F_DUMP, payload)
            found = list(self._answers(sequence))
            if not any(flags & _NLM_F_DUMP_INTR for flags, _ in found):
                return [answer for _, answer in found]
        raise NetlinkError(errno.EAGAIN, "the kernel's state changes faster than it can be read")

    def _send(self, kind: int, flags: int, payload: bytes) -> int:
        sequence = next(self._sequence) & 0xFFFFFFFF
        try:
            self._socket.sendto(_HEADER.pack(len(payload) + _HEADER.size, kind, flags, sequence, 0) + payload, (0, 0))
        except OSError as error:
            raise NetlinkError(error.errno, f"sending to the kernel: {error.strerror}") from error
        return sequence

    def _answers(self, expected: int, *, single: bool = False) -> Iterator[tuple[int, bytes]]:
        while True:
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError as error:
                raise NetlinkError(errno.ETIMEDOUT, "the kernel gave no answer within 10 seconds") from error
            for kind, flags, sequence, payload in messages(data):
                if sequence != expected:
                    continue  # a late answer to a request that failed half-way
                if kind in {_NLMSG_ERROR, _NLMSG_DONE}:
                    _raise_for(kind, flags, payload)
                    if kind == _NLMSG_DONE and flags & _NLM_F_DUMP_INTR:
                        yield flags, b""
                    return
                yield flags, payload
                if single:
                    return


def _raise_for(kind: int, flags: int, payload: bytes) -> None:
    code = -struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else 0
    if code <= 0:
        return
    # struct nlmsgerr is the code and the header of our request, which NLM_F_CAPPED cuts to the header alone;
    # struct nlmsgdone is the code alone.
    start = 4
    if kind == _NLMSG_ERROR:
        request_length = _HEADER.unpack_from(payload, 4)[0]
        start = 4 + (_HEADER.size if flags & _NLM_F_CAPPED else (request_length + 3) & ~3)
    reason = ""
    if flags & _NLM_F_ACK_TLVS:
        for attr, begin, end in attributes(payload, start):
            if attr == _NLMSGERR_ATTR_MSG:
                reason = payload[begin:end].rstrip(b"\0").decode(errors="replace")
    raise NetlinkError(code, reason or os.strerror(code))
