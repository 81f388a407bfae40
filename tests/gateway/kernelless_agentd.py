"""agentd without its kernel part, as a process: the stream to a real controller, and the local API for a gateway.

    python -m tests.gateway.kernelless_agentd STATE_DIR SOCKET

Every address of 127.0.0.0/24 is a caller. What a kernel would do with the map is left out, because it needs privileges.
"""

import asyncio
import sys
from pathlib import Path

from agentd.apply import Applier
from agentd.asked import Asked
from agentd.control import Control
from agentd.gateway_messages import RecordsRequest
from agentd.local_api import Answer, Identity, Request, WhoisRequest
from agentd.local_server import listening, serve
from agentd.reconcile import Applied
from agentd.records import RecordsPost
from agentd.state import StateDir
from agentd.telling import Telling
from controller.wire.asking import Answer as Told
from controller.wire.asking import Ask
from controller.wire.netmap import Netmap
from controller.wire.stream import HostReport
from tests.control.calls import KEY


class NoKernel:
    async def apply(self, netmap: Netmap) -> Applied:
        return Applied(operations=(), messages=0, nft_transactions=0)


async def without_kernel(question: Ask) -> Told:
    return Told(id=question.id, error="there is no kernel here")


async def main(state_dir: Path, socket: Path) -> None:
    state = StateDir(state_dir)
    node, key = state.node(), state.wireguard_key()
    assert node is not None
    assert key is not None
    post = RecordsPost()
    telling: list[Telling] = []
    applier = Applier(NoKernel(), state, on_outcome=lambda _: telling[0].changed())
    report = HostReport(agent_version="test", public_key=key.public)
    telling.append(Telling(applier, lambda: report))
    control = Control(state, node, applier, telling[0], asked=Asked(without_kernel), records=post)

    async def handle(request: Request) -> Answer:
        if isinstance(request, RecordsRequest):
            return await post.ship(request)
        assert isinstance(request, WhoisRequest)
        name = f"caller-{request.address.rpartition('.')[2]}"
        return Identity(
            address=request.address,
            node=name,
            name=name,
            fqdn=f"{name}.mesh.internal",
            tags=(),
            public_key=KEY,
            kind="agent",
            is_self=False,
        )

    with listening(socket, None) as server:
        await asyncio.gather(applier.run(), control.run(), serve(server, handle, lambda _: None))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
