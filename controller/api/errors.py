"""Every refusal and failure as RFC 9457 problem+json, and what the OpenAPI says of them."""

import logging
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from controller.logs import request_id
from controller.problems import Kind, Refused
from controller.store.engine import FullDiskError, StoreError
from controller.wire.rest import Problem

__all__ = ["install", "problem_response", "problems"]

_log = logging.getLogger(__name__)
MEDIA_TYPE: Final = "application/problem+json"
_AGAIN: Final = 2  # seconds until a database that was away is worth another request
_OF_STATUS: Final = {
    400: Kind.BAD_REQUEST,
    404: Kind.NOT_FOUND,
    405: Kind.METHOD_NOT_ALLOWED,
    413: Kind.TOO_LARGE,
    415: Kind.UNSUPPORTED_MEDIA_TYPE,
}


def problem_response(
    kind: Kind, detail: str, *, errors: Iterable[Mapping[str, Any]] = (), headers: Mapping[str, str] | None = None
) -> Response:
    """The response for one problem; `instance` is the request's id, which the log has too."""
    problem = Problem(
        type=kind.urn,
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=f"urn:wardmesh:request:{request_id()}",
        errors=tuple(dict(error) for error in errors),
    )
    # RFC 9110 section 11.6.1: a 401 says how to authenticate.
    challenge = {"www-authenticate": "Bearer"} if kind is Kind.UNAUTHENTICATED else {}
    return Response(
        problem.model_dump_json(),
        status_code=kind.status,
        headers={**challenge, **(headers or {})},
        media_type=MEDIA_TYPE,
    )


def problems(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: the problems it can answer with, each with an example."""
    ordered = sorted(
        {*kinds, Kind.TOO_MANY_REQUESTS, Kind.INVALID, Kind.INTERNAL, Kind.UNAVAILABLE}, key=lambda kind: kind.status
    )
    return {
        status: {
            "description": "; ".join(kind.title for kind in group),
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {kind.name.lower().replace("_", "-"): {"value": _example(kind)} for kind in group},
                }
            },
        }
        for status, group in ((status, list(kinds)) for status, kinds in groupby(ordered, lambda kind: kind.status))
    }


def install(app: FastAPI) -> None:
    """Render everything that handlers raise."""
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(StoreError, _unavailable)
    app.add_exception_handler(Exception, _failed)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    # RFC 9110 section 10.2.3, RFC 6585 section 4.
    headers = {"retry-after": str(error.retry_after)} if error.retry_after is not None else {}
    return problem_response(error.kind, error.detail, errors=error.errors, headers=headers)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Never `input`: for a field that is missing it is the whole body, with the secret that another field holds.
    found = [
        {"location": ".".join(str(part) for part in item["loc"]), "message": _plain(item["msg"])}
        for item in error.errors()
    ]
    kind = Kind.BAD_REQUEST if any(item["type"] == "json_invalid" for item in error.errors()) else Kind.INVALID
    return problem_response(kind, "; ".join(f"{item['location']}: {item['message']}" for item in found), errors=found)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _OF_STATUS.get(error.status_code, Kind.BAD_REQUEST if error.status_code < 500 else Kind.INTERNAL)
    details = {
        Kind.NOT_FOUND: "there is nothing at this path: the API is described at /api/v1/openapi.json",
        Kind.METHOD_NOT_ALLOWED: f"{request.method} is not allowed here",
    }
    return problem_response(kind, details.get(kind, str(error.detail)), headers=error.headers)


async def _unavailable(_request: Request, error: Exception) -> Response:
    _log.error("the store failed: %s", error)
    detail = "the controller's database does not answer: try again, its log says why"
    if isinstance(error, FullDiskError):
        detail = "nothing can be written now, because the disk is full: free some space on the database's machine"
    return problem_response(Kind.UNAVAILABLE, detail, headers={"retry-after": str(_AGAIN)})


async def _failed(_request: Request, _error: Exception) -> Response:
    # The server logs the traceback, under the same request id.
    return problem_response(Kind.INTERNAL, "this is a mistake in the controller: its log has the request id and more")


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")


def _example(kind: Kind) -> dict[str, Any]:
    return {"type": kind.urn, "title": kind.title, "status": kind.status, "detail": "what was wrong, and the remedy"}
