"""One gateway process: gets its policy from agentd or from a file, runs its services, ends when told."""

import asyncio
import logging
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from controller.wire.mcp import AuditRules, GatewayPolicy

from ..errors import AgentError
from .audit import AuditLog
from .build import BUILD
from .certificates import Certificates
from .feed import AgentFeed, asking_agentd, certified_by_agentd
from .gateway import Gateway
from .http.limits import HttpLimits
from .identity import AgentIdentity, IdentitySource, StaticIdentity
from .limits import Limiter
from .policy import CompiledPolicy
from .runtime import Runtime, bind_here
from .sessions import Sessions
from .settings import Settings, read_callers, read_policy, session_key
from .shipping import Shipper, ship_leftovers
from .siblings import Siblings
from .spool import SpoolWriter
from .upstreams import connect

__all__ = ["run"]

log = logging.getLogger("agentd.gateway")

_LOOK = 1.0  # seconds between looks at the policy file
_NOTHING = GatewayPolicy(revision=0)  # until agentd says what to serve


async def run(settings: Settings, worker: int) -> None:
    """Serve until SIGTERM, SIGINT or, in a worker, until its parent is gone. Raises AgentError when it cannot start."""
    stop = asyncio.Event()
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, changed.set)
    if settings.with_parent:
        loop.add_reader(sys.stdin.fileno(), stop.set)  # the parent holds the other end, and says nothing
    policy = read_policy(settings.policy) if settings.policy is not None else _NOTHING
    async with AsyncExitStack() as undo:
        limiter = Limiter()
        compiled = CompiledPolicy(policy, limiter)
        identity: IdentitySource = (
            AgentIdentity(settings.agent_socket)
            if settings.callers is None
            else StaticIdentity(read_callers(settings.callers))
        )
        undo.push_async_callback(identity.close)
        in_force = _InForce(policy)
        audit = await _audit(settings, worker, in_force, undo)
        gateway = Gateway(identity, compiled, audit, Sessions(session_key(settings.state_dir)))
        siblings = Siblings(worker, settings.siblings) if settings.siblings else None
        if siblings is not None:
            undo.callback(siblings.close)
        runtime = Runtime(
            gateway,
            limiter,
            connect,
            listen=bind_here if settings.policy is not None else asking_agentd(settings.agent_socket),
            certificates=_certificates(settings, worker),
            http=HttpLimits(),
            process=worker,
            processes=settings.workers,
            siblings=siblings,
        )
        undo.push_async_callback(runtime.close, settings.grace)
        runtime.start()
        await _apply(runtime, in_force, policy)

        async def adopt(wanted: GatewayPolicy) -> None:
            identity.invalidate()  # the map is another one: who left it is gone at once
            await _apply(runtime, in_force, wanted)
            await gateway.recheck()
            log.info("in force", extra={"revision": wanted.revision, "services": len(wanted.services)})

        log.info("ready", extra={"worker": worker, "revision": policy.revision, "build": BUILD})
        if settings.policy is not None:
            await _follow(settings.policy, runtime, in_force, changed, stop)
        else:
            await _follow_agentd(
                AgentFeed(settings.agent_socket, worker, adopt, runtime.health, runtime.tls_problems), stop
            )
    log.info("stopped", extra={"worker": worker})


def _certificates(settings: Settings, worker: int) -> Certificates:
    """The first process has them signed; without agentd, whoever runs the gateway puts them there."""
    ours = settings.policy is None and worker == 0
    return Certificates(settings.state_dir / "tls", certified_by_agentd(settings.agent_socket) if ours else None)


async def _audit(settings: Settings, worker: int, in_force: "_InForce", undo: AsyncExitStack) -> AuditLog:
    """The trail, and where there is an agentd, its way to the controller. Raises SpoolError."""
    spools = settings.state_dir / "spool"
    writer = SpoolWriter(spools / str(worker), most_bytes=settings.spool_bytes)
    if settings.callers is not None:
        audit = AuditLog(writer, in_force.audit_rules)
    else:
        shipper = Shipper(spools / str(worker), writer, settings.agent_socket)
        undo.push_async_callback(shipper.close)  # when the trail is closed, and its last records are on the disk
        shipper.start()
        if worker == 0:
            leftovers = asyncio.create_task(ship_leftovers(spools, settings.workers, settings.agent_socket))
            undo.push_async_callback(_end, leftovers)
        audit = AuditLog(writer, in_force.audit_rules, synced=shipper.wake)
    undo.push_async_callback(audit.close)
    audit.start()
    return audit


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    for result in await asyncio.gather(task, return_exceptions=True):
        if isinstance(result, Exception):
            log.error("records of former workers were not shipped", exc_info=result)


class _InForce:
    """The policy that is applied now, for who must look into it."""

    def __init__(self, policy: GatewayPolicy) -> None:
        self.policy = policy

    def audit_rules(self, service: str) -> AuditRules | None:
        found = self.policy.services.get(service)
        return found.audit if found is not None else None


async def _apply(runtime: Runtime, in_force: _InForce, policy: GatewayPolicy) -> None:
    in_force.policy = policy
    for problem in await runtime.apply(policy):
        log.error("%s", problem)


async def _follow_agentd(feed: AgentFeed, stop: asyncio.Event) -> None:
    """Do as agentd says until told to stop."""
    following = asyncio.create_task(feed.run())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([following, stopping], return_when=asyncio.FIRST_COMPLETED)
    for task in (following, stopping):
        task.cancel()
    results = await asyncio.gather(following, stopping, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _follow(
    file: Path, runtime: Runtime, in_force: _InForce, changed: asyncio.Event, stop: asyncio.Event
) -> None:
    """Apply the file whenever it is another one, until told to stop. A file that cannot be used changes nothing."""
    seen = _identity_of(file)
    while not stop.is_set():
        changed.clear()
        waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(changed.wait())]
        await asyncio.wait(waits, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if stop.is_set():
            return
        now = _identity_of(file)
        if now == seen and not changed.is_set():
            continue
        seen = now
        try:
            policy = read_policy(file)
        except AgentError as error:
            log.warning("the previous policy stays in force: %s", error)
            continue
        if policy != in_force.policy:
            await _apply(runtime, in_force, policy)
            log.info("in force", extra={"revision": policy.revision})


def _identity_of(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
