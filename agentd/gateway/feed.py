"""agentd on the other side of its Unix socket: what it wants served, and what it is told of how that goes.

Follows for ever; while agentd is away, what it last said stays in force. What a policy means is not known here.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from socket import socket
from typing import Final

from controller.wire.mcp import GatewayPolicy, Service, ServiceName

from ..errors import AgentError
from ..gateway_messages import Certified, CertifyRequest, GatewayRequest, ListenRequest, Policy, ServingReport
from ..local_api import Failure, answer_type
from ..local_client import ask, listening_socket
from .certificates import Certify
from .runtime import Listen

__all__ = ["AgentFeed", "asking_agentd", "certified_by_agentd"]

log = logging.getLogger("agentd.gateway.feed")

_LONGEST_POLICY: Final = 256 * 1024 * 1024  # bytes
_REPORT_EVERY: Final = 1.0  # seconds; agentd takes five without one for a gateway that hangs
_AGAIN: Final = 0.25
_AGAIN_AT_MOST: Final = 2.0
_CONTROLLER_PATIENCE: Final = 60.0
_LONGEST_REASON: Final = 200  # characters


def asking_agentd(path: Path) -> Listen:
    """How the gateway gets its listening sockets: agentd opens them, because ports below 1024 need a capability."""

    async def listen(service: Service, address: str, port: int, processes: int) -> socket:
        request = ListenRequest(service=service.name, address=address, port=port, processes=processes)
        return await asyncio.to_thread(listening_socket, path, request)

    return listen


def certified_by_agentd(path: Path) -> Certify:
    """How the gateway gets its services' certificates: agentd asks the controller for them, as the node that it is."""

    async def certify(service: ServiceName, csr: str) -> str:
        request = CertifyRequest(service=service, csr=csr)
        answer = await asyncio.to_thread(ask, path, request, Certified, patience=_CONTROLLER_PATIENCE)
        return answer.certificate

    return certify


class AgentFeed:
    """Follows agentd's policy as worker number `worker`; the first worker also says how the services are.

    `adopt` puts a policy in force; `look` finds out how the services are, `tls` why they do not answer over TLS.
    """

    def __init__(
        self,
        path: Path,
        worker: int,
        adopt: Callable[[GatewayPolicy], Awaitable[None]],
        look: Callable[[], Awaitable[Mapping[str, str | None]]],
        tls: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._path = path
        self._worker = worker
        self._adopt = adopt
        self._look = look
        self._tls = tls
        self._changed = asyncio.Event()
        self._away = False

    async def run(self) -> None:
        """Follow until cancelled."""
        pause = _AGAIN
        while True:
            try:
                async with aclosing(self._policies()) as policies:
                    async for policy in policies:
                        pause = _AGAIN
                        await self._adopt(policy)
                        self._changed.set()
                why = "it closed the connection"
            except (OSError, ValueError, AgentError) as error:
                why = str(error)
            if not self._away:
                self._away = True
                log.warning("agentd cannot be followed at %s (%s): what it last said stays in force", self._path, why)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _AGAIN_AT_MOST)

    async def _policies(self) -> AsyncGenerator[GatewayPolicy, None]:
        """What agentd says, until the connection ends. Raises OSError, AgentError, ValueError."""
        reader, writer = await asyncio.open_unix_connection(self._path, limit=_LONGEST_POLICY)
        telling: asyncio.Task[None] | None = None
        try:
            writer.write(GatewayRequest(worker=self._worker).model_dump_json().encode() + b"\n")
            await writer.drain()
            if self._worker == 0:
                telling = asyncio.create_task(self._tell(writer))
            while line := await reader.readline():
                answer = answer_type.validate_json(line)
                if isinstance(answer, Failure):
                    raise AgentError(answer.error)
                if isinstance(answer, Policy):
                    if self._away:
                        self._away = False
                        log.info("agentd is followed again at %s", self._path)
                    yield answer.policy
        finally:
            if telling is not None:
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)
            writer.close()

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        """Say how the services are: every second, and at once when the policy changed."""
        with suppress(ConnectionError):  # the reader sees it too
            while True:
                self._changed.clear()
                found = await self._look()
                report = {name: why and why[:_LONGEST_REASON] for name, why in found.items()}
                without_tls = {name: why[:_LONGEST_REASON] for name, why in self._tls().items()}
                said = ServingReport(services=report, without_tls=without_tls)
                writer.write(said.model_dump_json().encode() + b"\n")
                await writer.drain()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_REPORT_EVERY):
                        await self._changed.wait()
