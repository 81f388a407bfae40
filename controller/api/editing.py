"""Editing without losing anybody's change (ETag, If-Match: RFC 9110 section 13.1.1), and creating once."""

import re
from collections.abc import Awaitable
from typing import Annotated, Final, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel

from controller.api.access import Member
from controller.idempotency import Once, Replay
from controller.problems import Kind, Refused

__all__ = ["EDITING", "ONCE", "Expected", "ExpectedIfAny", "MaybeOnce", "etag", "only_once"]

T = TypeVar("T", bound=BaseModel)
EDITING = (Kind.PRECONDITION_REQUIRED, Kind.PRECONDITION_FAILED)
ONCE = (Kind.IDEMPOTENCY_KEY_REUSED,)
_TAG: Final = re.compile(r'(W/)?"([^"]*)"')
_IfMatch = Annotated[
    str | None, Header(description="the ETag of what was read, or `*`", examples=['"17"'], max_length=1000)
]


def etag(revision: int) -> str:
    """The strong entity tag of a revision."""
    return f'"{revision}"'


def _expected_if_any(if_match: _IfMatch = None) -> frozenset[int] | None:
    if if_match is None or if_match.strip() == "*":
        return None
    # If-Match compares strongly: a weak tag, and one that is not ours, match nothing.
    tags = _TAG.findall(if_match)
    return frozenset(int(tag) for weak, tag in tags if not weak and tag.isascii() and tag.isdigit() and len(tag) < 19)


ExpectedIfAny = Annotated[frozenset[int] | None, Depends(_expected_if_any)]


def _expected(expected: ExpectedIfAny, if_match: _IfMatch = None) -> frozenset[int] | None:
    if if_match is None:
        raise Refused(
            Kind.PRECONDITION_REQUIRED, "send If-Match with the ETag of what you read, so that no other change is lost"
        )
    return expected


Expected = Annotated[frozenset[int] | None, Depends(_expected)]


async def _once(
    request: Request,
    principal: Member,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1, max_length=255, description="the same key makes a repeated request happen once, for 24 hours"
        ),
    ] = None,
) -> Once | None:
    if idempotency_key is None:
        return None
    return Once.of(
        actor=principal.actor,
        credential=principal.credential,
        idempotency_key=idempotency_key,
        method=request.method,
        path=request.url.path,
        body=await request.body(),
    )


MaybeOnce = Annotated[Once | None, Depends(_once)]


async def only_once(model: type[T], response: Response, creating: Awaitable[T]) -> T:
    """What `creating` answers, or what it answered when the same request came before."""
    try:
        return await creating
    except Replay as replay:
        response.headers["Idempotency-Replayed"] = "true"
        return model.model_validate_json(replay.body)
