"""A connection to agentd's Unix socket that is kept: one question, one answer, and again.

Knows nothing of what is asked; whoever asks takes turns.
"""

import asyncio
from pathlib import Path
from typing import Final

from agentd.local_api import Answer, Request, answer_type

__all__ = ["AgentLine"]

_LONGEST_ANSWER: Final = 1024 * 1024


class AgentLine:
    """One client of agentd."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: Request) -> Answer:
        """Ask on the kept connection, or on a new one. After an error, hang up: the answer may still come.

        Raises OSError, asyncio.IncompleteReadError, or ValueError for what is no answer.
        """
        fresh = self._connection is None
        line = request.model_dump_json(exclude_none=True).encode() + b"\n"
        while True:
            if self._connection is None:
                self._connection = await asyncio.open_unix_connection(self.path, limit=_LONGEST_ANSWER)
            reader, writer = self._connection
            try:
                writer.write(line)
                await writer.drain()
                return answer_type.validate_json(await reader.readuntil(b"\n"))
            except (ConnectionError, asyncio.IncompleteReadError):
                self.hang_up()
                if fresh:
                    raise
                fresh = True  # agentd restarted since the last question: once more, on a new connection

    def hang_up(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection[1].close()
            self._connection = None
