"""A query parameter that a route does not know is refused: a misspelt filter must not list everything."""

from collections.abc import Iterator
from difflib import get_close_matches

from fastapi import Request
from fastapi.dependencies.models import Dependant

from controller.problems import Kind, Refused

__all__ = ["known_parameters", "only_known_parameters"]


async def only_known_parameters(request: Request) -> None:
    """A dependency of every route."""
    sent = request.query_params.keys()
    if not sent:
        return
    known = list(known_parameters(request.scope["route"].dependant))
    for name in sent:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(known) or 'none'}"
            raise Refused(Kind.INVALID, f"query.{name[:64]}: there is no such parameter here; {remedy}")


def known_parameters(dependant: Dependant) -> Iterator[str]:
    """The query parameters that a route takes. The OpenAPI document has them, too, but holds everybody up when made."""
    for parameter in dependant.query_params:
        yield parameter.alias
    for inner in dependant.dependencies:
        yield from known_parameters(inner)
