"""Whether one packet meets a condition of an nftables rule, as nft's JSON writes it (libnftables-json(5)). Pure.

A packet need not be described wholly: what is left open meets a condition sometimes. What cannot be read is said to be
unread, and never guessed.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, IntEnum
from typing import Any, Final

__all__ = ["Answer", "Find", "Found", "NoValue", "Open", "Packet", "Scope", "meets", "meets_xt", "value_of"]

Found = tuple[str, str]  # an element's verdict and its chain
# Looks a key up in a named set of one table: its name, the key. Raises LookupError where that cannot be known.
Find = Callable[[str, Sequence[object]], Found | None]


class Answer(IntEnum):
    """Whether a packet meets a condition. The greater of two is the answer to both together, but for NO."""

    YES = 0
    SOMETIMES = 1  # as a matter of what the description leaves open
    UNREAD = 2
    NO = 3


@dataclass(frozen=True, slots=True)
class Open:
    """A value that the description leaves open, but that is none of `but`."""

    but: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet by its fields, `"ip saddr"` or `"meta iifname"`: strings, numbers, or Open. A field that is not there
    is unread, one of another protocol is never met."""

    six: bool
    protocol: str  # tcp, udp, icmp or icmpv6
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a condition may refer to besides the packet."""

    packet: Packet
    find: Find


class NoValue(Enum):
    """Why a packet has no value of an expression: it cannot be read, or is of a protocol that the packet is not."""

    UNREAD = "unread"
    NEVER = "never"


_UNREAD: Final = NoValue.UNREAD
_NEVER: Final = NoValue.NEVER
_NUMBERS: Final[Mapping[object, str]] = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", "ipv6-icmp": "icmpv6"}
# Extension headers, which packets of the mesh do not have; how iptables names its matches for them.
_NO_SUCH_HEADER: Final = frozenset({"rt", "frag", "hbh", "dst", "ah", "esp", "mh", "srh", "ipv6header"})


def meets(scope: Scope, condition: Mapping[str, Any]) -> Answer:
    """The answer to one `match` expression."""
    operator, left, right = condition["op"], value_of(scope.packet, condition["left"]), condition["right"]
    if left is _NEVER:
        return Answer.NO
    if operator in {"==", "in"}:
        return _contains(scope, left, right)
    if operator == "!=":
        answer = _contains(scope, left, right)
        return {Answer.YES: Answer.NO, Answer.NO: Answer.YES}.get(answer, answer)
    if isinstance(right, str) and isinstance(left, int):
        right = _seconds(right)
    if isinstance(left, int) and isinstance(right, int) and operator in _COMPARISONS:
        return Answer.YES if _COMPARISONS[operator](left, right) else Answer.NO
    return Answer.SOMETIMES if isinstance(left, Open) else Answer.UNREAD


def _seconds(text: str) -> int | None:
    """A time as libnftables prints it, in the time zone of the process, in seconds since the epoch."""
    try:
        return int(datetime.strptime(text, "%Y-%m-%d %H:%M:%S").astimezone().timestamp())
    except ValueError:
        return None


_COMPARISONS: Final[Mapping[str, Callable[[int, int], bool]]] = {
    "<": lambda one, other: one < other,
    ">": lambda one, other: one > other,
    "<=": lambda one, other: one <= other,
    ">=": lambda one, other: one >= other,
}


def value_of(packet: Packet, expression: Any) -> object:
    """The packet's value of an expression, or NoValue; a tuple for a concatenation."""
    value: object = _UNREAD
    match expression:
        case {"meta": {"key": str(key)}}:
            value = packet.fields.get(f"meta {key}", _UNREAD)
        case {"payload": {"protocol": str(protocol), "field": str(field)}}:
            value = _payload(packet, protocol, field)
        case {"ct": {"key": str(key), **more}} if not more:
            value = packet.fields.get(f"ct {key}", _UNREAD)
        case {"fib": {"result": str(result), "flags": flags}}:
            words = [flags] if isinstance(flags, str) else flags
            value = packet.fields.get(f"fib {' . '.join(words)} {result}", _UNREAD)
        case {"exthdr": _}:
            value = _NEVER
        case {"&": [left, int(mask)]}:
            value = value_of(packet, left)
            if value is not _NEVER:
                value = value & mask if isinstance(value, int) else _UNREAD
        case {"concat": [*parts]}:
            values = tuple(value_of(packet, part) for part in parts)
            value = _NEVER if _NEVER in values else values
    return value


def _payload(packet: Packet, protocol: str, field: str) -> object:
    if protocol in {"ip", "ip6"}:
        if (protocol == "ip6") != packet.six:
            return _NEVER
    elif protocol not in {"th", packet.protocol}:
        return _NEVER
    if protocol in {"th", "tcp", "udp"} and field in {"sport", "dport"}:
        return packet.fields.get(f"th {field}", _NEVER)
    return packet.fields.get(f"{protocol} {field}", _UNREAD)


def _contains(scope: Scope, value: object, wanted: Any) -> Answer:
    """Is the value the wanted one, or among the wanted ones?"""
    if value is _UNREAD or (isinstance(value, tuple) and _UNREAD in value):
        return Answer.UNREAD
    answer = None
    match wanted:
        case {"set": [*choices]} | [*choices]:
            answer = _any(_contains(scope, value, choice) for choice in choices)
        case {"elem": {"val": one}}:
            answer = _contains(scope, value, one)
        case {"concat": [*parts]}:
            answer = Answer.UNREAD
            if isinstance(value, tuple) and len(value) == len(parts):
                answer = max(_contains(scope, one, part) for one, part in zip(value, parts, strict=True))
        case str(name) if name.startswith("@"):
            answer = _in_named(scope, value, name[1:])
    if answer is not None:
        return answer
    if isinstance(value, Open):
        return Answer.NO if isinstance(wanted, str) and wanted in value.but else Answer.SOMETIMES
    return _equals(value, wanted)


def _any(answers: Any) -> Answer:
    """One of several conditions is enough."""
    found = set(answers)
    for answer in (Answer.YES, Answer.UNREAD, Answer.SOMETIMES):
        if answer in found:
            return answer
    return Answer.NO


def _in_named(scope: Scope, value: object, name: str) -> Answer:
    key = value if isinstance(value, tuple) else (value,)
    if any(isinstance(part, Open) for part in key):
        return Answer.SOMETIMES
    try:
        return Answer.NO if scope.find(name, key) is None else Answer.YES
    except LookupError:
        return Answer.UNREAD


def _equals(value: object, wanted: Any) -> Answer:
    answer = Answer.UNREAD
    match wanted:
        case {"range": [int(low), int(high)]} if isinstance(value, int):
            answer = _is(low <= value <= high)
        case {"prefix": {"addr": str(address), "len": int(length)}} if isinstance(value, str):
            answer = _within(value, f"{address}/{length}", f"{address}/{length}")
        case {"range": [str(first), str(last)]} if isinstance(value, str):
            answer = _within(value, first, last)
        case str(text) if isinstance(value, str):
            known = _NUMBERS.get(text, text)
            answer = _is(value.startswith(known[:-1]) if known.endswith("*") else value == known)
        case int(number):
            answer = _is(number == value if isinstance(value, int) else _NUMBERS.get(number) == value)
    return answer


def _within(value: str, first: str, last: str) -> Answer:
    try:
        address = ipaddress.ip_address(value)
        low = ipaddress.ip_network(first, strict=False)[0]
        high = ipaddress.ip_network(last, strict=False)[-1]
    except ValueError:
        return Answer.UNREAD
    if not address.version == low.version == high.version:
        return Answer.NO
    return _is(int(low) <= int(address) <= int(high))


def _is(true: bool) -> Answer:
    return Answer.YES if true else Answer.NO


# --- what iptables-nft wrote ------------------------------------------------------------------------------------------

_XT: Final[Mapping[str, re.Pattern[str]]] = {
    "conntrack": re.compile(r"\bct (state) (!= )?([a-z,]+)"),
    "state": re.compile(r"\bct (state) (!= )?([a-z,]+)"),
    "multiport": re.compile(r"\b(?:tcp|udp|th) ([sd]port) (!= )?\{ ([^}]*) \}"),
    "addrtype": re.compile(r"\bfib ([sd]addr) type (!= )?([a-z,]+)"),
    "icmp": re.compile(r"\bicmp (type) (!= )?([a-z-]+)"),
    "icmp6": re.compile(r"\bicmpv6 (type) (!= )?([a-z-]+)"),
}
_FIELDS: Final = {"state": "ct state", "sport": "th sport", "dport": "th dport"}
_XT_FIELDS: Final = {"icmp": "icmp type", "icmp6": "icmpv6 type"}


def meets_xt(scope: Scope, name: str, text: str) -> Answer:
    """The answer to a match of iptables, from nft's text of its rule; UNREAD where that has no words for it."""
    if name == "comment":
        return Answer.YES
    if name in _NO_SUCH_HEADER:
        return Answer.NO
    found = _XT[name].findall(text) if name in _XT else []
    if len(found) != 1:
        return Answer.UNREAD
    what, negated, listed = found[0]
    field = _XT_FIELDS.get(name) or (f"fib {what} type" if name == "addrtype" else _FIELDS[what])
    choices = [_number(word) for word in re.split(r",\s*", listed.strip())]
    value = scope.packet.fields.get(field, _UNREAD)
    answer = _contains(scope, value, {"set": choices})
    if negated:
        return {Answer.YES: Answer.NO, Answer.NO: Answer.YES}.get(answer, answer)
    return answer


def _number(word: str) -> Any:
    low, dash, high = word.partition("-")
    if low.isdigit():
        return {"range": [int(low), int(high)]} if dash and high.isdigit() else int(low)
    return word
