"""Asks the router that this host is behind for a port of its own, so that strangers' packets come in there.

By PCP, NAT-PMP or UPnP, whichever the router speaks, where its owner has not switched it off; where none does, nothing
is lost but some questions in ten minutes. Knows nothing of peers.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Final, Protocol

from controller.wire.base import Address, Endpoint, split_endpoint
from controller.wire.netcheck import MappingProtocol

from .kernel.links import default_gateway
from .model import KernelError
from .paths.pcp import Announced
from .paths.router import Epoch, Granted, RouterError
from .port_control import Announcements, NatPmp, Pcp
from .upnp import Upnp

__all__ = ["PortMapping"]

log = logging.getLogger("agentd.mapping")

_RETRY: Final = 600.0  # seconds
# RFC 6887 section 14.1.3: not every host behind the router at once.
_ASIDE: Final = 5  # seconds
_GIVING_BACK: Final = 5.0  # seconds


class _Protocol(Protocol):
    @property
    def protocol(self) -> MappingProtocol: ...

    async def map(self, router: Address) -> Granted: ...

    async def end(self, router: Address) -> None: ...


class PortMapping:
    """One UDP port, mapped for as long as somebody wants it."""

    def __init__(self, port: int, nonce: bytes, *, allowed: bool = True) -> None:
        """`nonce`: 12 bytes that nobody else knows, the same after a restart. `allowed`: False asks nobody, ever."""
        self.allowed = allowed
        self.endpoint: Endpoint | None = None  # of the router, for this host
        self.protocol: MappingProtocol | None = None  # by which
        self.problem: str | None = None  # why there is none
        self._turn = asyncio.Lock()
        self._protocols: list[_Protocol] = [
            Pcp(port, nonce),
            NatPmp(port),
            Upnp(port),
        ]  # the one that worked last is first
        self._changed: Callable[[], None] = _nobody
        self._wanted = self._over = False
        self._wake = asyncio.Event()
        self._router: Address | None = None
        self._epoch = Epoch()
        self._soon: asyncio.TimerHandle | None = None

    def connect(self, changed: Callable[[], None]) -> None:
        """`changed` is called when `endpoint` is another."""
        self._changed = changed

    @property
    def wanted(self) -> bool:
        """True where there is something to map, and it is allowed."""
        return self._wanted

    def want(self, wanted: bool) -> None:
        """Only behind a NAT is there something to map."""
        if wanted != self._wanted and self.allowed and not self._over:
            self._wanted = wanted
            self._wake.set()

    def moved(self) -> None:
        """This host is somewhere else, and its router another one."""
        self._wake.set()

    async def run(self) -> None:
        """Map, and renew halfway, until cancelled; what is mapped then ends by itself."""
        while self.allowed:
            self._wake.clear()
            if not self._wanted:
                self._take(None)
                await self._wake.wait()
                continue
            with Announcements(self._heard):
                pause = await self._renew()
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
        if endpoint is None or self._router is None:
            return []
        try:
            async with asyncio.timeout(_GIVING_BACK), self._turn:
                await self._protocols[0].end(self._router)
        except (RouterError, OSError) as error:
            log.warning("the router keeps %s for two hours at most: %s", endpoint, error or "it does not answer")
            return []
        return [f"gave the router's port {endpoint} back"]

    async def _renew(self) -> float:
        """Ask; seconds until the next time."""
        try:
            async with self._turn:
                found = await self._map()
        except (RouterError, KernelError, OSError) as error:
            self.problem = str(error)
            log.debug("the router maps no port: %s", error)
            self._take(None)
            return _RETRY
        self.problem = None
        self._take(found)
        return found.again

    async def _map(self) -> Granted:
        self._go_to(default_gateway())
        if self._router is None:
            raise RouterError("there is no default route over IPv4")
        problems = []
        for protocol in tuple(self._protocols):
            try:
                found = await protocol.map(self._router)
            except (RouterError, OSError) as error:
                problems.append(f"{protocol.protocol}: {error}")
                continue
            self._protocols.sort(key=lambda each: each is not protocol)
            if found.epoch is not None:
                self._epoch.lost(found.epoch, self._now)
            return found
        raise RouterError(f"the router {self._router} gives none ({'; '.join(problems)})")

    def _go_to(self, router: Address | None) -> None:
        if router != self._router:
            self._router = router
            self._epoch.forget()

    def _take(self, found: Granted | None) -> None:
        endpoint = found.endpoint if found is not None else None
        self.protocol = found.protocol if found is not None else None
        if endpoint != self.endpoint and not self._over:
            self.endpoint = endpoint
            if found is not None:
                log.info("the router mapped a port", extra={"endpoint": endpoint, "by": found.protocol})
            self._changed()

    def _heard(self, source: Address, told: Announced) -> None:
        """A router that began anew has forgotten what it gave; one that is elsewhere gives another."""
        if source != self._router:
            return
        outside = split_endpoint(self.endpoint)[0] if self.endpoint is not None else None
        elsewhere = None not in {told.address, outside} and told.address != outside
        if (self._epoch.lost(told.epoch, self._now) or elsewhere) and self._soon is None:
            aside = secrets.randbelow(_ASIDE * 1000) / 1000
            log.info("the router began anew, and is asked for a port again", extra={"seconds": round(aside, 1)})
            self._soon = asyncio.get_running_loop().call_later(aside, self._again)

    def _again(self) -> None:
        self._soon = None
        self._wake.set()

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _nobody() -> None:
    pass
