"""Writers of every kind, who remember what the controller acknowledged, and check that it still holds.

A write without an answer may have happened or not; it is asked again, as the command and agentd do, until it has one.
"""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from controller.wire.enrol import EnrolResponse, JoinString
from controller.wire.stream import PROTOCOL, STREAM_PATH, Bye, Hello, HostReport, controller_frame

from ..hosts import Host, wireguard_key
from .process import Controller

POLICY: Final = """\
# {mark}
services:
  github: {{on: [tag:tools], mcp: {{upstream: "http://127.0.0.1:3000/mcp"}}}}
grants:
  - {{from: tag:agents, to: tag:tools, ip: [tcp:443]}}
  - {{from: tag:agents, to: svc:github, mcp: {{tools: ["search_*"]}}}}
"""
_TAGS: Final = ("tag:agents", "tag:tools", "tag:other")


class Promises:
    """What must be true of each subject: the acknowledged value, or one of those that were asked for since."""

    def __init__(self) -> None:
        self._allowed: dict[tuple[str, str], list[object]] = {}
        self.facts: dict[str, tuple[str, tuple[str, ...]]] = {}  # a node's id and addresses, by name
        self.moves: dict[int, str | None] = {}  # who held the service since which revision, as moves were answered
        self.kept = 0

    def tried(self, kind: str, name: str, value: object) -> None:
        self._allowed.setdefault((kind, name), [None]).append(value)

    def acknowledged(self, kind: str, name: str, value: object) -> None:
        self._allowed[kind, name] = [value]
        self.kept += 1

    def check(self, found: Mapping[tuple[str, str], object], nodes: Mapping[str, tuple[str, tuple[str, ...]]]) -> None:
        lost = {
            subject: (found.get(subject), allowed)
            for subject, allowed in self._allowed.items()
            if found.get(subject) not in allowed
        }
        assert not lost, f"acknowledged and lost: {lost}"
        others = {name: (nodes[name], fact) for name, fact in self.facts.items() if name in nodes}
        assert all(now == then for now, then in others.values()), others


Write = Callable[[httpx.AsyncClient], Awaitable[object]]


class Writer:
    """One client that writes, each kind by chance, one request at a time."""

    def __init__(self, controller: Controller, promises: Promises, name: str, chance: random.Random, tmp: Path) -> None:
        self._controller = controller
        self._promises = promises
        self._name = name
        self._chance = chance
        self._directory = tmp
        self._nodes: dict[str, Host] = {}
        self._tags: dict[str, list[str]] = {}
        self._count = 0

    async def run(self) -> None:
        """Write until cancelled."""
        async with self._controller.client() as client:
            while True:
                await self.write(client)

    async def write(self, client: httpx.AsyncClient) -> None:
        """One write of a kind that is possible now."""
        kinds: list[Write] = [
            self._enrol,
            self._key,
            self._peer,
            self._grant,
        ]
        if self._nodes:
            kinds += [self._tag, self._tag, self._rotate, self._rotate, self._move, self._grant]
        if len(self._nodes) > 3:
            kinds += [self._delete]
        if self._name == "0":
            kinds += [self._policy, self._policy]
        await self._chance.choice(kinds)(client)

    def _new(self, what: str) -> str:
        self._count += 1
        return f"{what}-{self._name}-{self._count}"

    async def _ask(self, client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> httpx.Response:
        """The answer, of whichever attempt gets one."""
        headers = {"if-match": "*"} if method in {"PUT", "PATCH"} else {}
        if method == "POST":
            headers["idempotency-key"] = str(uuid.UUID(int=self._chance.getrandbits(128)))
        while True:
            await self._controller.up.wait()
            try:
                answer = await client.request(method, path, json=body, headers=headers)
            except httpx.TransportError:
                await asyncio.sleep(0.01)
                continue
            if answer.status_code < 500:
                return answer
            await asyncio.sleep(0.05)

    async def _done(self, client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> Any:
        answer = await self._ask(client, method, path, body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    async def _key(self, client: httpx.AsyncClient) -> str:
        note = self._new("key")
        self._promises.tried("key", note, 1)
        made = await self._done(client, "POST", "/enrolment-keys", {"note": note})
        self._promises.acknowledged("key", note, 1)
        return JoinString.decode(made["join"]).key

    async def _enrol(self, client: httpx.AsyncClient) -> None:
        name = self._new("node")
        host = Host(name)
        wanted = host.request(await self._key(client))
        self._promises.tried("node", name, (host.public_key, ()))
        made = await self._done(client, "POST", "/enrol", wanted)
        host.enrolled = EnrolResponse.model_validate(made)
        self._promises.acknowledged("node", name, (host.public_key, ()))
        self._promises.facts[name] = (host.enrolled.node_id, tuple(map(str, host.enrolled.addresses)))
        self._nodes[name], self._tags[name] = host, []

    async def _peer(self, client: httpx.AsyncClient) -> None:
        name, key = self._new("peer"), wireguard_key()
        self._promises.tried("node", name, (key, ("tag:agents",)))
        made = await self._done(
            client, "POST", "/static-peers", {"name": name, "public_key": key, "tags": ["tag:agents"]}
        )
        self._promises.acknowledged("node", name, (key, ("tag:agents",)))
        self._promises.facts[name] = (made["id"], tuple(made["addresses"]))

    async def _grant(self, client: httpx.AsyncClient) -> None:
        reason = self._new("grant")
        wanted = {"from": ["tag:agents"], "to": ["tag:tools"], "ip": ["tcp:22"], "ttl": 3600, "reason": reason}
        self._promises.tried("grant", reason, 1)
        answer = await self._ask(client, "POST", "/grants", wanted)
        if answer.is_success:  # else no node or policy names these tags yet
            self._promises.acknowledged("grant", reason, 1)

    async def _policy(self, client: httpx.AsyncClient) -> None:
        text = POLICY.format(mark=self._new("policy"))
        self._promises.tried("policy", "", text)
        await self._done(client, "PUT", "/policy", {"text": text})
        self._promises.acknowledged("policy", "", text)

    async def _tag(self, client: httpx.AsyncClient) -> None:
        name, host = self._chance.choice(sorted(self._nodes.items()))
        tags = sorted(self._chance.sample(_TAGS, self._chance.randrange(3)))
        self._promises.tried("node", name, (host.public_key, tuple(tags)))
        await self._done(client, "PATCH", f"/nodes/{_id(host)}", {"tags": tags})
        self._promises.acknowledged("node", name, (host.public_key, tuple(tags)))
        self._tags[name] = tags

    async def _delete(self, client: httpx.AsyncClient) -> None:
        name = self._chance.choice(sorted(self._nodes))
        self._promises.tried("node", name, None)
        answer = await self._ask(client, "DELETE", f"/nodes/{_id(self._nodes[name])}")
        assert answer.status_code in {204, 404}, answer.text  # gone since the attempt without an answer
        self._promises.acknowledged("node", name, None)
        del self._nodes[name]

    async def _move(self, client: httpx.AsyncClient) -> None:
        name = self._chance.choice(sorted(self._nodes))
        answer = await self._ask(client, "POST", "/services/github/move", {"node": name, "force": True})
        # Refused while policy does not let this node serve. A move to where it is already, as when the controller
        # itself has handed it over meanwhile, changes nothing: what is answered is the change that brought it there.
        if answer.is_success:
            service = answer.json()
            self._promises.moves[service["revision"]] = service["holder"]

    async def _rotate(self, _client: httpx.AsyncClient) -> None:
        """A new tunnel key, told on the stream: the first map is the acknowledgement."""
        name, host = self._chance.choice(sorted(self._nodes.items()))
        old, new = host.public_key, wireguard_key()
        tags = tuple(self._tags[name])
        self._promises.tried("node", name, (new, tags))
        hello = Hello(report=HostReport(agent_version="test", public_key=new, endpoints=()))
        while True:
            await self._controller.up.wait()
            try:
                async with connect(
                    f"wss://127.0.0.1:{self._controller.port}{STREAM_PATH}",
                    ssl=host.presenting(self._controller.trust(), self._directory),
                    subprotocols=[Subprotocol(PROTOCOL)],
                ) as socket:
                    await socket.send(hello.model_dump_json())
                    frame = controller_frame.validate_json(await socket.recv())
            except (OSError, WebSocketException):
                await asyncio.sleep(0.01)
                continue
            if not isinstance(frame, Bye):
                break
            assert frame.reason == "shutdown", frame
            await asyncio.sleep(0.05)
        assert old != new
        host.public_key = new
        self._promises.acknowledged("node", name, (new, tags))


def _id(host: Host) -> str:
    return host.enrolled.node_id


@asynccontextmanager
async def writing(
    controller: Controller, promises: Promises, chance: random.Random, tmp: Path, writers: int = 4
) -> AsyncIterator[None]:
    """Let writers write while the block runs; what one of them finds wrong ends it."""
    crowd = [Writer(controller, promises, str(n), random.Random(chance.random()), tmp) for n in range(writers)]
    async with controller.client() as client:
        await crowd[0]._policy(client)
    async with asyncio.TaskGroup() as group:  # a writer that finds something wrong ends the block
        tasks = [group.create_task(writer.run()) for writer in crowd]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
