"""A query parameter that a route does not know is refused: a misspelt filter must not list everything."""

from difflib import get_close_matches
from typing import Any

from fastapi import Request

from controller.problems import Kind, Refused

__all__ = ["only_known_parameters"]


async def only_known_parameters(request: Request) -> None:
    """A dependency of every route. What a route knows is what the OpenAPI document says of it."""
    sent = request.query_params.keys()
    if not sent:
        return
    known = _known(request.app.openapi(), request.scope["route"].name)
    for name in sent:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(known) or 'none'}"
            raise Refused(Kind.INVALID, f"query.{name[:64]}: there is no such parameter here; {remedy}")


def _known(document: dict[str, Any], operation_id: str) -> list[str]:
    return [
        parameter["name"]
        for operations in document["paths"].values()
        for operation in operations.values()
        if operation["operationId"] == operation_id
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "query"
    ]
