"""Port ranges: sorted, disjoint, inclusive. The only place that does arithmetic on them."""

from collections.abc import Iterable

from controller.wire.netmap import ALL_PORTS, PortRange

__all__ = ["ALL_PORTS", "Ports", "covers", "format_ports", "merge", "overlap", "parse_ports", "without"]

Ports = tuple[PortRange, ...]


def merge(ranges: Iterable[PortRange]) -> Ports:
    """The same ports as sorted, disjoint ranges that do not touch."""
    merged: list[PortRange] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def covers(outer: Ports, inner: Ports) -> bool:
    """True when every port of `inner` is in `outer`; both merged."""
    return all(any(low <= first and last <= high for low, high in outer) for first, last in inner)


def overlap(one: Ports, other: Ports) -> bool:
    """True when some port is in both."""
    return any(low <= last and first <= high for low, high in one for first, last in other)


def without(ports: Ports, removed: Ports) -> Ports:
    """The ports of the first that are not in the second; both merged, and so is the result."""
    left: list[PortRange] = []
    for low, high in ports:
        start = low
        for first, last in removed:
            if last < start or first > high:
                continue
            if first > start:
                left.append((start, first - 1))
            start = last + 1
        if start <= high:
            left.append((start, high))
    return tuple(left)


def format_ports(ports: PortRange) -> str:
    """The inverse of `parse_ports`."""
    low, high = ports
    return "*" if ports == ALL_PORTS else str(low) if low == high else f"{low}-{high}"


def parse_ports(text: str) -> PortRange:
    """`443`, `8000-8100` or `*`. Raises ValueError."""
    if text == "*":
        return ALL_PORTS
    first, dash, last = text.partition("-")
    low = _port(first, text)
    high = _port(last, text) if dash else low
    if low > high:
        raise ValueError(f"the range {text!r} runs backwards: write {high}-{low}")
    return low, high


def _port(digits: str, text: str) -> int:
    if digits.isascii() and digits.isdigit() and len(digits) <= 5 and 0 < int(digits) < 65536:
        return int(digits)
    raise ValueError(f"{text!r} is not a port: write one of 1-65535, a range like 8000-8100, or *")
