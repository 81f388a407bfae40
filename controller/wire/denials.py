"""Denied packets as hosts report them and as REST shows them: a sample, because tables log at a limited rate."""

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import Field

from .base import Address, Message, Text
from .netmap import NodeId

__all__ = ["MOST_DENIALS", "Denial", "DenialList", "HostDenial", "Where"]

MOST_DENIALS: Final = 201  # of a minute: 200 flows, and what did not fit

Where = Literal["in", "out", "forward", "spoofed"]  # spoofed: a mesh address on another link


class Denial(Message):
    """Denied packets of one flow in the minute that began at `minute`; no flow: those that were too many to list.

    `port` is the destination's, None where the protocol has none. `protocol` is a number where it has no common name.
    """

    minute: datetime
    direction: Where | None = None
    source: Address | None = None
    destination: Address | None = None
    protocol: Annotated[Text, Field(max_length=16)] | None = None
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    packets: Annotated[int, Field(ge=1, description="that were logged; a table logs at most 5 a second of an address")]


class HostDenial(Denial):
    """A denial, and the host that denied it."""

    node: NodeId


class DenialList(Message):
    """GET /denials: the newest minute first. Kept in memory: a restarted controller knows what hosts tell it again."""

    items: tuple[HostDenial, ...]
