"""HTTP as the REST client needs it: attempts, the controller's problems, pages, ETags.

Knows no resource of the API and no terminal.
"""

import ssl
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from controller.wire.rest import Page, Problem

from .errors import BadAnswerError, RefusedError, UnreachableError
from .trust import TIMEOUT, tls_problem, unreachable

__all__ = ["Query", "Tagged", "Transport", "read", "read_tagged"]

M = TypeVar("M", bound=BaseModel)
Query = Mapping[str, str | Sequence[str] | None]

_PAGE: Final = 500  # the API's largest page
_ATTEMPTS: Final = 3
_PAUSE: Final = 0.2  # seconds before the second attempt; doubles


@dataclass(frozen=True, slots=True)
class Tagged(Generic[M]):
    """A resource and the ETag that an edit of it must name."""

    value: M
    etag: str


class Transport:
    """Connections to the controller at `url`, which `tls` decides whether to believe."""

    def __init__(self, url: str, token: str | None, tls: ssl.SSLContext) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=f"{url}/api/v1/", headers=headers, verify=tls, timeout=TIMEOUT)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def page(self, model: type[Page[M]], path: str, query: Query, size: int = _PAGE) -> Page[M]:
        """GET one page of a list."""
        return read(model, self.send("GET", path, params={**query, "limit": str(size)}))

    def pages(self, model: type[Page[M]], path: str, query: Query, size: int = _PAGE) -> Iterator[M]:
        """GET a list page by page, as its items are consumed."""
        found = self.page(model, path, query, size)
        yield from found.items
        while found.next is not None:
            found = self.page(model, path, {**query, "cursor": found.next}, size)
            yield from found.items

    def post(self, path: str, body: BaseModel) -> httpx.Response:
        """POST once, however often it has to be sent."""
        # The key makes a repetition harmless: the controller answers the second request with the first one's result.
        return self.send("POST", path, json=body.model_dump(mode="json"), idempotency_key=str(uuid.uuid4()))

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Query | None = None,
        json: Any = None,
        etag: str | None = None,
        idempotency_key: str | None = None,
    ) -> httpx.Response:
        """The controller's answer, if it is one of success. Raises ClientError."""
        given = {key: value for key, value in (params or {}).items() if value is not None}
        headers = {"If-Match": etag} if etag is not None else {}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        repeatable = method == "GET" or idempotency_key is not None
        pause = _PAUSE
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = self._http.request(method, path, params=given, json=json, headers=headers)
            except httpx.TransportError as error:
                problem = tls_problem(self.url, error)
                if problem is not None:
                    raise problem from error
                # Without a connection nothing was sent, so anything may be repeated; after that, only what is safe to.
                safe = isinstance(error, httpx.ConnectError) or (
                    repeatable and isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)
                )
                if not safe or attempt == _ATTEMPTS:
                    raise UnreachableError(unreachable(self.url, error)) from error
                time.sleep(pause)  # a back-off, in a command that does one thing after the other
                pause *= 2
            else:
                return self._checked(answer)
        raise AssertionError("the last attempt returns or raises")

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        if answer.headers.get("content-type", "").startswith("application/problem+json"):
            raise RefusedError(read(Problem, answer))
        raise BadAnswerError(
            f"{answer.request.method} {answer.request.url} answered {answer.status_code} {answer.reason_phrase}, "
            "without the form that a controller's errors have: check the URL, and any proxy in front of it"
        )


def read(model: type[M], answer: httpx.Response) -> M:
    """The body as `model`. Raises BadAnswerError."""
    try:
        return model.model_validate_json(answer.content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadAnswerError(
            f"{answer.request.method} {answer.request.url} answered something that this version cannot read "
            f"({place + ': ' if place else ''}{first['msg']}): check the URL and that both versions agree"
        ) from error


def read_tagged(model: type[M], answer: httpx.Response) -> Tagged[M]:
    """The body as `model`, with its ETag. Raises BadAnswerError."""
    etag = answer.headers.get("etag")
    if etag is None:
        raise BadAnswerError(f"GET {answer.request.url} carries no ETag: a proxy in front of it may remove it")
    return Tagged(read(model, answer), etag)
