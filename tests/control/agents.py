"""The part of agentd between the controller and the kernel, on a real connection to a real controller.

The kernel is played by a list that remembers what was applied: what a real one does with a map is a kernel test.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from agentd.apply import Applier
from agentd.asked import Asked
from agentd.background import running as while_open
from agentd.config import Config
from agentd.control import Control
from agentd.denied import DeniedLog
from agentd.denied_report import reports
from agentd.join import HostFacts, join
from agentd.model import KernelError
from agentd.netmap import load
from agentd.reconcile import Applied
from agentd.session import Phase
from agentd.state import StateDir
from agentd.telling import Telling
from controller.wire.asking import Answer, Ask
from controller.wire.netmap import Netmap
from controller.wire.rest import EnrolmentKeyCreated
from controller.wire.stream import HostReport

from .support import Client

ALLOW_ALL = 'grants:\n  - from: ["*"]\n    to: ["*"]\n    ip: ["tcp:*"]\n'


@dataclass
class Memory:
    """Remembers the maps that were applied; refuses while `refusal` is set."""

    applied: list[Netmap] = field(default_factory=list)
    refusal: str | None = None

    async def answer(self, question: Ask) -> Answer:
        return Answer(id=question.id, revision=self.applied[-1].revision, accepted={"grant": 7})

    async def apply(self, netmap: Netmap) -> Applied:
        if self.refusal:
            raise KernelError(self.refusal)
        self.applied.append(netmap)
        return Applied(operations=(), messages=0, nft_transactions=0)


@dataclass
class Agent:
    """The part of a daemon between the controller and the kernel."""

    state: StateDir
    kernel: Memory
    applier: Applier
    control: Control
    telling: Telling
    endpoints: list[str]
    denied: DeniedLog

    @property
    def standing(self) -> Phase:
        return self.control.standing.phase

    @property
    def peers(self) -> set[str]:
        return {peer.name for peer in self.kernel.applied[-1].peers.values()} if self.kernel.applied else set()


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def joined(admin: httpx.AsyncClient, directory: Path, name: str) -> StateDir:
    answer = await admin.post("/enrolment-keys", json={})
    text = EnrolmentKeyCreated.model_validate_json(answer.content).join
    state = StateDir(directory / name)
    facts = HostFacts(addresses=(), networks=())
    await asyncio.to_thread(join, state, Config(name=name), text, facts, say=lambda _: None)
    return state


@asynccontextmanager
async def connected(state: StateDir) -> AsyncIterator[Agent]:
    """Run the agent that joined with this state."""
    node, key = state.node(), state.wireguard_key()
    assert node is not None
    assert key is not None
    endpoints = ["192.0.2.7:51820"]
    kernel, denied = Memory(), DeniedLog()
    tellings: list[Telling] = []
    applier = Applier(kernel, state, on_outcome=lambda _: tellings[0].changed())
    saved, _ = load(state)
    if saved is not None:
        applier.desire(saved, saved=True)
    telling = Telling(
        applier,
        lambda: HostReport(agent_version="test", public_key=key.public, endpoints=tuple(endpoints)),
        denied=lambda since: reports(denied, since, 0),
    )
    tellings.append(telling)
    control = Control(state, node, applier, telling, asked=Asked(kernel.answer))
    async with while_open(applier.run(), control.run()):
        yield Agent(state, kernel, applier, control, telling, endpoints, denied)


async def allow_all(admin: httpx.AsyncClient) -> None:
    etag = (await admin.get("/policy")).headers["etag"]
    answer = await admin.put("/policy", json={"text": ALLOW_ALL}, headers={"If-Match": etag})
    assert answer.is_success, answer.text


async def node(admin: Client, name: str) -> dict[str, object]:
    (found,) = (await admin.get("/nodes", params={"name": name})).json()["items"]
    return dict(found)


async def remove(admin: Client, name: str) -> None:
    path = f"/nodes/{(await node(admin, name))['id']}"
    etag = (await admin.get(path)).headers["etag"]
    answer = await admin.delete(path, headers={"If-Match": etag})
    assert answer.is_success, answer.text


async def set_state(admin: Client, name: str, value: str) -> None:
    path = f"/nodes/{(await node(admin, name))['id']}"
    etag = (await admin.get(path)).headers["etag"]
    answer = await admin.patch(path, json={"state": value}, headers={"If-Match": etag})
    assert answer.is_success, answer.text


async def eventually_in_force(admin: Client, name: str, revision: int) -> None:
    async with asyncio.timeout(20):
        while (await node(admin, name))["in_force"] != revision:
            await asyncio.sleep(0.02)
