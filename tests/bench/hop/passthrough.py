"""`python -m tests.bench.hop.passthrough UPSTREAM_PORT PORT [PEM]`: the least that passes HTTP on with usual libraries.

uvicorn (uvloop, httptools) and an aiohttp client; no parsing, no policy, no audit. Answers pass as they come. It speaks
TLS with the key and the certificate in PEM, if that is given.
"""

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import uvicorn

URL = f"http://127.0.0.1:{sys.argv[1]}"
DROPPED = {b"host", b"connection", b"content-length", b"transfer-encoding"}


class PassThrough:
    """The ASGI application."""

    def __init__(self) -> None:
        self.session: aiohttp.ClientSession | None = None

    async def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            return
        if self.session is None:
            self.session = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(name.decode(), value.decode()) for name, value in scope["headers"] if name not in DROPPED]
        async with self.session.request(scope["method"], URL + scope["path"], data=body, headers=headers) as answer:
            passed = [(name.lower(), value) for name, value in answer.raw_headers if name.lower() not in DROPPED]
            if answer.content_length is not None:
                passed.append((b"content-length", str(answer.content_length).encode()))
            await send({"type": "http.response.start", "status": answer.status, "headers": passed})
            async for data in answer.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


if __name__ == "__main__":
    uvicorn.run(
        PassThrough(),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="error",
        access_log=False,
        lifespan="off",
        ssl_certfile=sys.argv[3] if len(sys.argv) > 3 else None,
    )
