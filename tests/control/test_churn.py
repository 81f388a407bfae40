"""An hour in which something always comes or goes leaves nothing behind in a controller's memory.

Every object is counted, of a real controller with real streams; dictionaries of plain values are counted with the mesh
alone (`unit/test_mesh_churn.py`), where nothing else moves. Resident memory is the bench's (`fleet --churn`).
"""

import gc
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from controller.mesh.log import RevisionLog
from controller.server import Running, running
from controller.settings import Settings
from controller.wire.stream import Applied

from .hosts import Host, new_key, wireguard_key
from .streams import POLICY, Agent, agent, delete, node_id, patch
from .support import Client, MovableClock

WARM_UP = 10
ROUNDS = 24
OURS = ("controller.", "uvicorn.", "websockets.", "starlette.", "fastapi.", "sqlalchemy.")
_GRANT = {"from": ["tag:agents"], "to": ["tag:tools"], "ip": ["tcp:22"], "ttl": 60, "reason": "churn"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is bounded is full at once, and what pytest keeps of the log is nothing."""
    monkeypatch.setattr("controller.mesh.hub.RevisionLog", partial(RevisionLog, max_size=50))
    monkeypatch.setattr("controller.mesh.state._REMEMBERED", 20)
    monkeypatch.setattr("controller.mesh.state.ENDED_KEPT", 0)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def one_round(controller: Running, admin: Client, stays: Agent, directory: Path, number: int) -> None:
    """A host joins, connects, comes back, is renamed and removed; policy, grants, keys and static peers change."""
    texts = POLICY, POLICY.replace("tcp:443", "tcp:444")
    answer = await admin.put("/policy", json={"text": texts[number % 2]}, headers={"if-match": "*"})
    assert answer.is_success, answer.text
    guest = Host(f"guest-{number}")
    await guest.enrol(admin, await new_key(admin, tags=["tag:tools"]))
    async with agent(controller, guest, directory) as there:
        await there.hello()
        assert there.netmap is not None
        await there.say(Applied(revision=there.netmap.revision))
        await stays.take_until(lambda netmap: node_id(guest) in netmap.peers)
    async with agent(controller, guest, directory) as back:
        await back.hello(there.netmap)
        granted = await admin.post("/grants", json=_GRANT)
        assert granted.is_success, granted.text
        await patch(admin, guest, name=f"renamed-{number}")
        if number % 2:  # the others end by their time
            await admin.delete(f"/grants/{granted.json()['id']}")
        await delete(admin, guest)
        await back.bye()
    peer = await admin.post("/static-peers", json={"name": f"peer-{number}", "public_key": wireguard_key()})
    await admin.delete(f"/nodes/{peer.json()['id']}")
    netmap = await stays.take_until(lambda netmap: node_id(guest) not in netmap.peers)
    await stays.say(Applied(revision=netmap.revision))


def objects() -> Counter[str]:
    """How many there are of each kind that is ours, or of what serves us."""
    for _ in range(3):  # what is freed may free more
        gc.collect()
    kinds = (type(each) for each in gc.get_objects())
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
    return Counter(name for name in names if name.startswith(OURS))


async def test_no_object_stays_of_hosts_policies_and_grants_that_come_and_go_for_an_hour(
    settings: Settings, clock: MovableClock, tmp_path: Path
) -> None:
    unlimited = replace(settings, client_rate=0, key_rate=0, stream_rate=0)
    async with running(unlimited, clock) as controller, Client(controller, token=controller.first_token) as admin:
        host = Host("stays")
        await host.enrol(admin, await new_key(admin, tags=["tag:agents"]))
        async with agent(controller, host, tmp_path) as stays:
            await stays.hello()
            for number in range(WARM_UP + ROUNDS):
                if number == WARM_UP:
                    before = objects()
                clock.advance(seconds=3600 / ROUNDS)
                await one_round(controller, admin, stays, tmp_path, number)
            grown = {kind: more for kind, more in (objects() - before).items() if more >= ROUNDS / 2}
    assert before["controller.mesh.connection.Connection"] >= 1, "it counts them"
    assert grown == {}
