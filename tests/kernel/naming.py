"""agentd's names on a host, without the rest of agentd: `python -m tests.kernel.naming LINK SOCKET`, until SIGTERM."""

import asyncio
import signal
import sys
from pathlib import Path

from agentd.config import Config
from agentd.log import set_up
from agentd.naming import Naming
from controller.wire.netmap import Mesh, Netmap, SelfNode

MESH = Mesh(id="m1", name="test", domain="mesh.internal", prefix4="100.80.0.0/16", prefix6="fd00::/64")
NODE = SelfNode(id="n0", name="here", addresses=("100.80.0.1",))


async def main(link: str, socket: str) -> None:
    set_up("info", "plain")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    naming = Naming(Config(link=link, hosts_file=False, socket=Path(socket)))
    naming.adopt(Netmap(revision=1, mesh=MESH, node=NODE, names={"github": ("100.80.1.1",)}))
    running = asyncio.create_task(naming.run())
    await stop.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
