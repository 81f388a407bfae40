"""The gateway as a process with a policy file, and calls to it."""

import asyncio
import json
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.gateway.agent import KEY
from tests.gateway.harness import Lab, free_port, policy, soon, tool

START = 30.0


class Process:
    """`python -m agentd.gateway` with a policy file of one service."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.port = free_port()
        self.log = directory / "log"
        self.state = directory / "state"
        self.policy = directory / "policy.json"
        self.callers = directory / "callers.json"
        self.process: asyncio.subprocess.Process | None = None
        self.write_policy()
        self.write_callers([f"127.0.0.{number}" for number in range(1, 20)])

    def write_callers(self, addresses: list[str]) -> None:
        listed = [
            {"node_id": f"n{number}", "name": f"caller-{number}", "public_key": KEY, "tags": [], "address": address}
            for number, address in enumerate(addresses)
        ]
        self.callers.write_text(json.dumps(listed))

    def write_policy(
        self,
        revision: int = 1,
        tools: list[str] | None = None,
        beside: Mapping[str, Mapping[str, Any]] | None = None,
        **service: Any,
    ) -> None:
        """One service, `svc`, and those of `beside`, which have its upstream too."""
        described = {
            "addresses": ["127.0.0.1"],
            "port": self.port,
            "upstream": {"type": "http", "url": self.url},
            **service,
        }
        others = {name: {**described, **facts} for name, facts in (beside or {}).items()}
        wanted = policy({"svc": described, **others}, revision=revision).model_dump(mode="json")
        wanted["sets"]["alice"]["addresses"] = [f"127.0.0.{number}" for number in range(1, 20)]
        wanted["grants"]["all"]["tools"] = ["*"] if tools is None else tools
        fresh = self.policy.with_suffix(".new")
        fresh.write_text(json.dumps(wanted))
        fresh.rename(self.policy)

    async def start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "agentd.gateway", "--policy", str(self.policy), "--state-dir", str(self.state)]
        known = () if "--agent-socket" in arguments else ("--callers", str(self.callers))
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, *known, "--grace", "1", *arguments, stderr=log
            )

    async def ready(self, count: int = 1) -> None:
        await soon(lambda: self.said("info ready") >= count, START)

    def said(self, text: str) -> int:
        return self.log.read_text().count(text)

    def workers(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), START)


async def call(lab: Lab, gateway: Process, address: str = "127.0.0.1") -> int:
    client = await lab.connect(address, gateway.port)
    answer = await client.call(tool())
    await client.close()
    return answer.status if "result" in answer.json else -answer.code
