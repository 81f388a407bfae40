"""Comparing this host's clock with the controller's, whose HTTP `Date` header is the only other clock at hand.

Pure. A host whose clock is wrong sees certificates as expired or not yet valid; the message must show both clocks.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

__all__ = ["NOTICEABLE", "describe_clocks", "parse_date", "skew"]

NOTICEABLE: Final = timedelta(minutes=5)


def parse_date(header: str | None) -> datetime | None:
    """The time in a Date header (RFC 9110 section 5.6.7), None when there is none that can be read."""
    if not header:
        return None
    try:
        parsed = parsedate_to_datetime(header)
    except ValueError:
        return None
    return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def skew(here: datetime, there: datetime | None) -> timedelta:
    """How far this host's clock is ahead of the controller's; zero when within what nobody would notice."""
    if there is None or abs(here - there) < NOTICEABLE:
        return timedelta(0)
    return here - there


def describe_clocks(here: datetime, there: datetime | None) -> str:
    """Both clocks, and the remedy, for the end of a sentence."""
    if there is None:
        return f"this host's clock says {here:%Y-%m-%d %H:%M} UTC: check that it is right (timedatectl)"
    return (
        f"this host's clock says {here:%Y-%m-%d %H:%M} UTC, the controller's says {there:%Y-%m-%d %H:%M} UTC: "
        "set the wrong one (timedatectl set-ntp true)"
    )
