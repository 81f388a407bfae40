"""The gateway as a process that follows agentd's side of its socket."""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

from tests.gateway.agent import Agent

START = 30.0


class Gateway:
    """`python -m agentd.gateway` that follows `agent`."""

    def __init__(self, directory: Path, agent: Agent) -> None:
        self.log = directory / "log"
        self._state = directory / "state"
        self._agent = agent
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "agentd.gateway", "--state-dir", str(self._state), "--grace", "1"]
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, "--agent-socket", str(self._agent.path), *arguments, stderr=log
            )

    async def stop(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.terminate()
            await asyncio.wait_for(self.process.wait(), START)

    def said(self, text: str) -> int:
        return self.log.read_text().count(text)
