"""Who is in a conversation with a server process, besides the process."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..types import RequestId
from .answer import Answer

__all__ = ["Listener", "Pending", "Session"]


@dataclass(slots=True, eq=False)
class Session:
    """A legacy caller's session. `streams` are its open GET streams, the newest last."""

    id: str
    node_id: str
    capabilities: Mapping[str, Any]
    streams: list[Answer] = field(default_factory=list)
    subscribed: set[str] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Listener:
    """An open `subscriptions/listen` of a modern caller, towards a legacy server."""

    request_id: RequestId
    answer: Answer
    changes: frozenset[str]
    uris: frozenset[str]


@dataclass(slots=True, eq=False)
class Pending:
    """A request that the server has not answered. `modern`: translate what comes back for a modern caller."""

    id: int
    original: RequestId | None
    method: str
    session: Session | None
    token: RequestId | None
    modern: bool
    head: asyncio.Future[Answer]
    answer: Answer | None = None
