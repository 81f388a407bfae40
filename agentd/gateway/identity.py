"""Who has this mesh address? Asked of agentd, remembered for a short while.

Knows no HTTP and no policy. An address that agentd does not vouch for is nobody, also when agentd cannot be asked.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pydantic import ValidationError

from agentd.local_api import Failure, Identity, WhoisRequest

from .agent import AgentLine
from .types import Caller

__all__ = ["AgentIdentity", "IdentitySource", "StaticIdentity"]

log = logging.getLogger("agentd.gateway.identity")

_PATIENCE: Final = 5.0  # seconds that agentd has for an answer
_MOST: Final = 8192  # a mesh address is a peer's, so a flood of them needs a flood of peers


class IdentitySource(Protocol):
    """Says who callers are."""

    def known(self, address: str) -> Caller | None:
        """The caller at `address` if that is fresh knowledge; None: ask."""
        ...

    async def whois(self, address: str) -> Caller | None:
        """The caller at `address`; None when it is nobody's or nobody can say."""
        ...

    def invalidate(self) -> None:
        """What was remembered may be wrong: ask again before the next use."""
        ...

    async def close(self) -> None:
        """Give back what it holds."""
        ...


class StaticIdentity:
    """A fixed table, for tests, benches and a gateway without a mesh."""

    def __init__(self, callers: Mapping[str, Caller]) -> None:
        self.callers = dict(callers)

    def known(self, address: str) -> Caller | None:
        return self.callers.get(address)

    async def whois(self, address: str) -> Caller | None:
        return self.callers.get(address)

    def invalidate(self) -> None:
        pass

    async def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Remembered:
    """An answer, when it was asked for, and how often everything had been invalidated before."""

    caller: Caller | None
    asked: float
    generation: int


class AgentIdentity:
    """Asks agentd over its Unix socket, one question at a time on one connection that is kept.

    An answer is used for `fresh` seconds (a refusal for `refused`). While agentd cannot be asked, as when it restarts,
    the last answer stands for `grace` seconds more: the kernel goes on enforcing the same map in the meantime. At most
    `most` addresses are remembered.
    """

    def __init__(
        self,
        path: Path,
        *,
        fresh: float = 5.0,
        refused: float = 1.0,
        grace: float = 60.0,
        most: int = _MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._fresh = fresh
        self._refused = refused
        self._grace = grace
        self._most = most
        self._clock = clock
        self._remembered: dict[str, _Remembered] = {}
        self._generation = 0  # answers of an earlier one are not fresh
        self._asking: dict[tuple[str, int], asyncio.Task[Caller | None]] = {}
        self._turn = asyncio.Lock()
        self._line = AgentLine(path)
        self._away = False

    def known(self, address: str) -> Caller | None:
        """The caller, if asked a moment ago."""
        found = self._remembered.get(address)
        if found is None or found.generation != self._generation or self._clock() - found.asked > self._fresh:
            return None
        return found.caller

    async def whois(self, address: str) -> Caller | None:
        """The caller, asking agentd when that was not done a moment ago. Callers that wait share one question."""
        found = self._remembered.get(address)
        if found is not None and found.generation == self._generation:
            age = self._clock() - found.asked
            if age <= (self._fresh if found.caller is not None else self._refused):
                return found.caller
        key = (address, self._generation)
        task = self._asking.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(*key))
            self._asking[key] = task
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(task)

    def invalidate(self) -> None:
        """Ask again before the next use."""
        self._generation += 1

    async def close(self) -> None:
        """Close the connection; questions under way end with it."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._line.hang_up()

    async def _ask(self, address: str, generation: int) -> Caller | None:
        asked = self._clock()
        try:
            async with self._turn, asyncio.timeout(_PATIENCE):
                answer = await self._line.ask(WhoisRequest(address=address))
        except (OSError, TimeoutError, ValidationError, ValueError, asyncio.IncompleteReadError) as error:
            self._line.hang_up()
            return self._last_known(address, error)
        if self._away:
            self._away = False
            log.info("agentd answers again at %s", self._path)
        caller = _caller(answer, address) if isinstance(answer, Identity) else None
        if caller is None:
            log.info("%s is nobody: %s", address, answer.error if isinstance(answer, Failure) else answer)
        self._remember(address, _Remembered(caller, asked, generation))
        return caller

    def _last_known(self, address: str, error: BaseException) -> Caller | None:
        if not self._away:
            self._away = True
            log.warning(
                "agentd cannot be asked at %s (%s): callers stay known for %.0f s", self._path, error, self._grace
            )
        found = self._remembered.get(address)
        return found.caller if found is not None and self._clock() - found.asked <= self._fresh + self._grace else None

    def _remember(self, address: str, answer: _Remembered) -> None:
        self._remembered.pop(address, None)
        if len(self._remembered) >= self._most:
            self._remembered.pop(next(iter(self._remembered)))  # the longest unasked
        self._remembered[address] = answer


def _caller(answer: Identity, address: str) -> Caller:
    if answer.is_self and answer.addresses:
        # A process of this host that calls a service held here has the service's address as its source (the kernel
        # speaks to a local address from that address), but policy is about the node: judge it by the node's own.
        family = [own for own in answer.addresses if (":" in own) == (":" in address)]
        address = address if address in answer.addresses else (family or list(answer.addresses))[0]
    return Caller(
        node_id=answer.node,
        name=answer.name,
        public_key=answer.public_key,
        tags=answer.tags,
        address=address,
    )
