"""What is answered to a question about the mesh's names: bytes of a DNS message in, bytes out (RFC 1035, 6891). Pure.

Answers for one domain and no other: it resolves nothing, caches nothing, and knows neither sockets nor where names are
from. A message of a stub resolver is one question and perhaps EDNS, so that little of the format is needed here.
"""

import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from controller.wire.base import Address

__all__ = ["Rcode", "Zone", "respond"]

_HEAD: Final = struct.Struct("!HHHHHH")  # id, flags, then how many questions, answers, authorities, additionals
_RECORD: Final = struct.Struct("!HHIH")  # after the name: type, class, TTL, length of what follows
_QR, _OPCODE, _AA, _TC, _RD, _CD = 0x8000, 0x7800, 0x0400, 0x0200, 0x0100, 0x0010
_A, _SOA, _AAAA, _OPT, _ANY = 1, 6, 28, 41, 255
_IN: Final = 1
_TTL: Final = 5  # seconds; also of what is not there: policy may give a name at any moment
_LEAST_UDP: Final = 512  # RFC 1035 section 4.2.1
_MOST_UDP: Final = 1232  # DNS flag day 2020: no fragments anywhere
_LONGEST_NAME: Final = 255
_AT_QUESTION: Final = b"\xc0\x0c"  # a pointer to the name in the question
_MOST_ADDITIONALS: Final = 4  # EDNS and a signature are what clients send


class Rcode(IntEnum):
    """RFC 1035 section 4.1.1; RFC 6891 section 6.1.3 for the last."""

    NOERROR = 0
    FORMERR = 1
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


@dataclass(frozen=True, slots=True)
class Zone:
    """The names of one mesh: addresses by full name, in lower case, all of them right below `domain`."""

    domain: str
    names: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)
    revision: int = 0

    def holds(self, name: str) -> bool:
        """Is the name the domain's own, or below it?"""
        return name == self.domain or name.endswith(f".{self.domain}")


@dataclass(frozen=True, slots=True)
class _Question:
    """`raw`: as it came, to be sent back. `size`: how long a UDP answer may be. `edns`: its version; None: without."""

    name: str
    type: int
    cls: int
    raw: bytes
    size: int = _LEAST_UDP
    edns: int | None = None


class _RefusedError(Exception):
    """The message cannot be read, or is none that we know."""

    def __init__(self, rcode: Rcode) -> None:
        super().__init__(rcode.name)
        self.rcode = rcode


def respond(message: bytes, zone: Zone, *, tcp: bool = False) -> bytes | None:
    """The answer; None where there must be none: to an answer (or two servers would talk for ever), or to no message.

    Names that are not of the zone's domain are refused, so that a resolver asks somebody else.
    """
    if len(message) < _HEAD.size or _HEAD.unpack_from(message)[1] & _QR:
        return None
    try:
        question = _read(message)
    except _RefusedError as refused:
        return _message(message, refused.rcode)
    except (struct.error, IndexError):  # it ends in the middle of something
        return _message(message, Rcode.FORMERR)
    if question.edns:
        return _message(message, Rcode.BADVERS, question)
    if question.cls not in (_IN, _ANY) or not zone.holds(question.name):
        return _message(message, Rcode.REFUSED, question)
    answer = _answer(message, question, zone)
    return answer if tcp or len(answer) <= question.size else _message(message, Rcode.NOERROR, question, more=_TC)


def _answer(message: bytes, question: _Question, zone: Zone) -> bytes:
    if question.name == zone.domain:
        is_soa = question.type in (_SOA, _ANY)
        section = {"answers" if is_soa else "authorities": (_soa(zone),)}
        return _message(message, Rcode.NOERROR, question, more=_AA, **section)
    addresses = zone.names.get(question.name)
    if addresses is None:
        return _message(message, Rcode.NXDOMAIN, question, more=_AA, authorities=(_soa(zone),))
    found = tuple(map(_record, (a for a in addresses if question.type in (_type(a), _ANY))))
    nothing = () if found else (_soa(zone),)  # RFC 2308 section 2.2: the name is there, without such a record
    return _message(message, Rcode.NOERROR, question, more=_AA, answers=found, authorities=nothing)


def _read(message: bytes) -> _Question:
    _, flags, questions, answers, authorities, additionals = _HEAD.unpack_from(message)
    if flags & _OPCODE:
        raise _RefusedError(Rcode.NOTIMP)
    if questions != 1 or answers or authorities or additionals > _MOST_ADDITIONALS:  # RFC 9619 for the first
        raise _RefusedError(Rcode.FORMERR)
    name, offset = _name(message, _HEAD.size)
    kind, cls = struct.unpack_from("!HH", message, offset)
    end = offset + 4
    question = _Question(name, kind, cls, message[_HEAD.size : end])
    for _ in range(additionals):
        end = _skip_name(message, end)
        kind, size, ttl, length = _RECORD.unpack_from(message, end)
        end += _RECORD.size + length
        if end > len(message):
            raise _RefusedError(Rcode.FORMERR)
        if kind == _OPT:
            if question.edns is not None:  # RFC 6891 section 6.1.1: one at most
                raise _RefusedError(Rcode.FORMERR)
            size = min(max(size, _LEAST_UDP), _MOST_UDP)
            question = _Question(name, question.type, cls, question.raw, size, ttl >> 16 & 0xFF)
    return question


def _name(message: bytes, offset: int) -> tuple[str, int]:
    """The name at `offset`, in lower case, and where it ends. Nothing stands before a question to point at."""
    start, labels = offset, []
    while length := message[offset]:
        if length > 63 or offset + 1 + length >= len(message) or offset + 1 + length - start >= _LONGEST_NAME:
            raise _RefusedError(Rcode.FORMERR)
        label = message[offset + 1 : offset + 1 + length]
        # A dot within a label would read as two; no name of ours has one, nor anything else that is not ASCII.
        labels.append(label.decode("ascii", "replace").replace(".", "\ufffd").lower())
        offset += 1 + length
    return ".".join(labels), offset + 1


def _skip_name(message: bytes, offset: int) -> int:
    while length := message[offset]:
        if length >= 0xC0:
            return offset + 2
        if length > 63:
            raise _RefusedError(Rcode.FORMERR)
        offset += 1 + length
    return offset + 1


def _type(address: Address) -> int:
    return _AAAA if ":" in address else _A


def _record(address: Address) -> bytes:
    packed = ipaddress.ip_address(address).packed
    return _AT_QUESTION + _RECORD.pack(_type(address), _IN, _TTL, len(packed)) + packed


def _soa(zone: Zone) -> bytes:
    """RFC 1035 section 3.3.13; its last number says how long nothing may be remembered (RFC 2308 section 4)."""
    domain = b"".join(bytes([len(label)]) + label.encode() for label in zone.domain.split(".")) + b"\0"
    numbers = struct.pack("!IIIII", zone.revision & 0xFFFFFFFF, 3600, 600, 86400, _TTL)
    data = domain + b"\x0ahostmaster" + domain + numbers
    return domain + _RECORD.pack(_SOA, _IN, _TTL, len(data)) + data


def _message(
    asked: bytes,
    rcode: Rcode,
    question: _Question | None = None,
    *,
    more: int = 0,
    answers: tuple[bytes, ...] = (),
    authorities: tuple[bytes, ...] = (),
) -> bytes:
    """Without `question`, the header alone: what cannot be read is not sent back."""
    number, flags = struct.unpack_from("!HH", asked)
    edns = b""
    if question is not None and question.edns is not None:
        edns = b"\0" + _RECORD.pack(_OPT, _MOST_UDP, rcode >> 4 << 24, 0)
    flags = _QR | flags & (_OPCODE | _RD | _CD) | more | rcode & 0xF
    counts = (int(question is not None), len(answers), len(authorities), int(bool(edns)))
    raw = question.raw if question is not None else b""
    return b"".join((_HEAD.pack(number, flags, *counts), raw, *answers, *authorities, edns))
