"""The wire between a controller and its database: it can be cut, held still, or lose one answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_SOCKET = ".s.PGSQL.5432"


class Wire:
    """Forwards connections. While it is `held`, bytes wait on both sides and nobody hears of it, as in a partition."""

    def __init__(self, database: Path) -> None:
        self._database = database / _SOCKET
        self._open: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._losing = False
        self.lost = asyncio.Event()

    def hold(self) -> None:
        self._flows.clear()

    def release(self) -> None:
        self._flows.set()

    def cut(self) -> None:
        """Break the connections of this moment."""
        for writer in self._open:
            writer.transport.abort()

    def lose_next_commit(self) -> None:
        """Let the next COMMIT through, and break its connection instead of delivering what it came to."""
        self._losing = True
        self.lost.clear()

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Carry one connection until it ends, or the test does."""
        with contextlib.suppress(asyncio.CancelledError):
            await self._serve(client, to_client)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            await self._flows.wait()
            server, to_server = await asyncio.open_unix_connection(str(self._database))
        except OSError:
            to_client.transport.abort()
            return
        self._open |= {to_client, to_server}
        committing = asyncio.Event()
        there = asyncio.create_task(self._carry(client, to_server, committing, asks=True))
        back = asyncio.create_task(self._carry(server, to_client, committing, asks=False))
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (there, back):
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
            self._open -= {to_client, to_server}
            to_client.transport.abort()
            to_server.transport.abort()

    async def _carry(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, committing: asyncio.Event, *, asks: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while content := await source.read(65536):
                await self._flows.wait()
                if asks and self._losing and b"COMMIT" in content:
                    self._losing = False
                    committing.set()
                if not asks and committing.is_set():
                    self.lost.set()
                    return  # the server has committed and says so: nobody hears it
                sink.write(content)
                await sink.drain()


@asynccontextmanager
async def wired(database: Path, directory: Path) -> AsyncIterator[Wire]:
    """A wire to the server whose socket is in `database`; clients find its end in `directory`."""
    wire = Wire(database)
    server = await asyncio.start_unix_server(wire.serve, directory / _SOCKET)
    try:
        yield wire
    finally:
        wire.release()
        server.close()
        wire.cut()
        await server.wait_closed()
