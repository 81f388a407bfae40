"""The largest body that a request may have: enforced while it arrives, whatever its headers claim."""

from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.api.errors import problem_response
from controller.problems import Kind

__all__ = ["BodyLimit"]

# A policy document may have 4 MiB of text, which JSON escapes can make longer; everything else is small.
POLICY_PATHS: Final = ("/api/v1/policy",)
POLICY_LIMIT: Final = 9 * 1024 * 1024
LIMIT: Final = 64 * 1024


class BodyLimit:
    """ASGI middleware: 413 instead of reading on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request with its body counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = POLICY_LIMIT if scope["path"].startswith(POLICY_PATHS) else LIMIT
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
