"""What a request may cost: how many a client may send, and how large a body may be.

A body is counted while it arrives, whatever its headers claim.
"""

import time
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.api.errors import problem_response
from controller.problems import Kind
from controller.rates import Rate, client_key

__all__ = ["BodyLimit", "ClientRate"]

_POLICY_PATHS: Final = ("/api/v1/policy",)


class BodyLimit:
    """ASGI middleware: 413 instead of reading on. `limit`: bytes of a request; `policy`: of one about policy."""

    def __init__(self, app: ASGIApp, limit: int, policy: int) -> None:
        self._app = app
        self._limit = limit
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request with its body counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._policy if scope["path"].startswith(_POLICY_PATHS) else self._limit
        # The server drops what is still arriving. Closing instead would make TCP reset the connection, and the client
        # would never read why.
        refusal = HTTPException(413, f"the body is larger than {limit} bytes")
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdigit() or int(announced) > limit:
            response = problem_response(Kind.TOO_LARGE, refusal.detail)
            await response(scope, receive, send)
            return
        received = 0

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise refusal  # where the body is read; rendered like every other problem
            return message

        await self._app(scope, counting, send)


class ClientRate:
    """ASGI middleware: 429 for a client that sends too many requests. Streams are counted by node, where they open."""

    def __init__(self, app: ASGIApp, rate: Rate) -> None:
        self._app = app
        self._rate = rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it before anything of it is read."""
        if scope["type"] == "http":
            client = (scope.get("client") or ("",))[0]
            wait = self._rate.take(client_key(client), time.monotonic())
            if wait:
                detail = f"too many requests from {client or 'this client'}: try again in {wait} s"
                response = problem_response(Kind.TOO_MANY_REQUESTS, detail, headers={"retry-after": str(wait)})
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
