"""Asks the router that this host is behind for a port of its own, by NAT-PMP, so that strangers' packets come in there.

Most home routers answer, where their owner has not switched it off; where none does, nothing is lost but a question in
ten minutes. Knows nothing of peers.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final, TypeVar

from controller.wire.base import Address, Endpoint, format_endpoint

from .model import KernelError
from .paths.natpmp import SERVER_PORT, External, Mapped, NatPmpError, ask_external, ask_mapping, read

__all__ = ["PortMapping"]

T = TypeVar("T", External, Mapped)

log = logging.getLogger("agentd.mapping")

_LIFETIME: Final = 7200  # seconds; RFC 6886 section 3.3 recommends that
_WAITS: Final = (0.25, 0.5, 1.0, 2.0)  # seconds; section 3.1 goes on to 64, but routers that do it answer at once
_RETRY: Final = 600.0


class PortMapping:
    """One UDP port, mapped for as long as somebody wants it."""

    def __init__(self, port: int, gateway: Callable[[], Address | None], changed: Callable[[], None]) -> None:
        """`gateway` tells the IPv4 address of the default router, or raises KernelError.

        `changed` is called when `endpoint` is another.
        """
        self._port, self._gateway, self._changed = port, gateway, changed
        self._wanted = self._over = False
        self._wake = asyncio.Event()
        self.endpoint: Endpoint | None = None  # of the router, for this host
        self.problem: str | None = None  # why there is none

    def want(self, wanted: bool) -> None:
        """Only behind a NAT is there something to map."""
        if wanted != self._wanted and not self._over:
            self._wanted = wanted
            self._wake.set()

    def moved(self) -> None:
        """This host is somewhere else, and its router another one."""
        self._wake.set()

    async def run(self) -> None:
        """Map, and renew halfway (section 3.7), until cancelled; what is mapped then ends by itself."""
        while True:
            self._wake.clear()
            pause = await self._renew() if self._wanted else None
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass  # due

    async def end(self) -> list[str]:
        """Give the port back and ask for none any more; what was done, for people.

        A router that is away forgets by itself.
        """
        endpoint, self._wanted, self._over, self.endpoint = self.endpoint, False, True, None
        if endpoint is None:
            return []
        try:
            with self._router() as router:
                await _ask(router, ask_mapping(self._port, 0, 0), Mapped)
        except (NatPmpError, KernelError, OSError) as error:
            log.warning("the router keeps %s for two hours at most: %s", endpoint, error)
            return []
        return [f"gave the router's port {endpoint} back"]

    async def _renew(self) -> float:
        """Ask; seconds until the next time."""
        try:
            endpoint, lifetime = await self._map()
        except (NatPmpError, KernelError, OSError) as error:
            self.problem, endpoint, lifetime = str(error), None, 2 * _RETRY
            log.debug("the router maps no port: %s", error)
        else:
            self.problem = None
        if endpoint != self.endpoint:
            self.endpoint = endpoint
            if endpoint is not None:
                log.info("the router mapped a port", extra={"endpoint": endpoint})
            self._changed()
        return max(lifetime / 2, 1.0)

    async def _map(self) -> tuple[Endpoint, float]:
        with self._router() as router:
            outside = await _ask(router, ask_external(), External)
            mapped = await _ask(router, ask_mapping(self._port, self._port, _LIFETIME), Mapped)
        if mapped.internal != self._port:
            raise NatPmpError(f"it mapped port {mapped.internal} instead of {self._port}")
        return format_endpoint(outside.address, mapped.external), float(mapped.lifetime)

    def _router(self) -> socket.socket:
        gateway = self._gateway()
        if gateway is None:
            raise NatPmpError("there is no default route over IPv4")
        router = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        router.setblocking(False)
        router.connect((gateway, SERVER_PORT))  # so that nobody else can answer (section 3.1)
        return router


async def _ask(router: socket.socket, question: bytes, kind: type[T]) -> T:
    loop = asyncio.get_running_loop()
    for wait in _WAITS:
        router.send(question)
        try:
            async with asyncio.timeout(wait):
                while True:
                    found = read(await loop.sock_recv(router, 64))
                    if isinstance(found, kind):
                        return found
        except TimeoutError:
            pass
    raise NatPmpError(f"{router.getpeername()[0]} does not answer")
