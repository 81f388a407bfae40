"""`agentd run`: puts the parts together, and takes them apart in the right order.

A stopped daemon leaves the tunnel as it is: only `leave` removes it. Knows of the kernel only the reconciler.
"""

import asyncio
import hmac
import importlib
import logging
import os
import signal
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from socket import socket
from typing import Any, Final

from controller.wire.stream import HostReport, Paths

from . import put_back
from .answers import Parts, answer, rotate, tell
from .apply import Applier, Outcome
from .asked import Asked
from .config import Config
from .control import Control
from .denied import DeniedLog, Flow
from .denied_report import reports
from .errors import AgentError, StateError
from .facts import OwnAddresses
from .gateway_process import GatewayProcess, User, gateway_uid, gateway_user, remove_files
from .host import endpoints, report
from .instance import sole_owner
from .keys import WireguardKey
from .leave import leave
from .local_api import Answer, Left, Request
from .local_server import Handed, Subscription, listening, serve
from .mapping import PortMapping
from .measured import measure
from .model import KernelError, LinkSettings
from .naming import Naming, remove_names
from .netcheck import netcheck_report
from .netmap import load
from .path_report import PathLog
from .paths.pcp import NONCE
from .probe_socket import ProbeSocket
from .probing import Prober
from .reconcile import Reconciler
from .records import RecordsPost
from .sd_notify import notify
from .serving import Serving
from .slept import naps
from .state import WIREGUARD_KEY, NodeFile, StateDir
from .stun_servers import stun_of
from .telling import Telling
from .tunnel_key import TunnelKey

__all__ = ["leave_without_daemon", "run"]

log = logging.getLogger("agentd.daemon")

_EXIT_CODES: Final = {signal.SIGTERM: 0, signal.SIGINT: 128 + signal.SIGINT}


def run(config: Config) -> int:
    """Run until a signal or `agentd leave` ends it; returns the exit code. Raises AgentError, KernelError."""
    return asyncio.run(_run(config))


def leave_without_daemon(config: Config, *, force: bool) -> Left:
    """What `agentd leave` does where no daemon runs. Raises AgentError, KernelError."""
    return asyncio.run(_leave_without_daemon(config, force=force))


@dataclass(frozen=True, slots=True)
class _Membership:
    """What a host that has joined has."""

    node: NodeFile
    key: WireguardKey


def _membership(state: StateDir) -> _Membership:
    node, key = state.node(), state.wireguard_key()
    if node is None:
        raise AgentError(f"this host has not joined a mesh ({state.path} is empty): run `agentd join` first")
    if key is None:
        raise StateError(f"{state.path / WIREGUARD_KEY} is missing: restore it, or run `agentd leave --force` and join")
    return _Membership(node, key)


def _link_settings(config: Config, probe_port: int = 0) -> LinkSettings:
    return LinkSettings(
        name=config.link,
        listen_port=config.listen_port,
        mtu=config.mtu,
        table=config.table,
        backend=config.backend,
        probe_port=probe_port,
        relay_rate=config.relay_rate,
    )


async def _leave_without_daemon(config: Config, *, force: bool) -> Left:
    state = StateDir(config.state_dir)
    async with AsyncExitStack() as stack:
        stack.enter_context(state.lock())
        stack.enter_context(sole_owner(link=config.link, table=config.table))
        # A reconciler has a key, also when it only removes; the host's own may be the damaged file that is removed.
        kernel = Reconciler(_link_settings(config), WireguardKey.generate().raw)
        stack.push_async_callback(kernel.close)
        await kernel.start()
        return await leave(state, kernel, partial(_remove_more, config), force=force)


async def _remove_more(config: Config) -> list[str]:
    """What a daemon that does not run left besides kernel state and its own files."""
    names = await asyncio.to_thread(remove_names, config)
    return [*names, *(await asyncio.to_thread(remove_files, config.gateway_dir) if config.gateway else [])]


async def _run(config: Config) -> int:
    state = StateDir(config.state_dir)
    async with AsyncExitStack() as stack:
        stack.enter_context(state.lock())
        member = _membership(state)
        stack.enter_context(sole_owner(link=config.link, table=config.table))
        user = gateway_user(config) if config.gateway else None
        server = stack.enter_context(listening(config.socket, config.socket_group or _group(user)))
        own = stack.enter_context(OwnAddresses())
        probes = stack.enter_context(ProbeSocket(config.listen_port))
        mesh = member.node.mesh
        prober = Prober(
            probes,
            own,
            mesh,
            stun=stun_of(member.node.url, config.stun_port),
            candidates=lambda: endpoints(config, own.now, mesh),
            mapping=PortMapping(config.listen_port, _nonce(state), allowed=config.port_mapping),
            mtu=config.mtu,
            listen_port=config.listen_port,
        )
        kernel = Reconciler(
            _link_settings(config, probes.port),
            member.key.raw,
            choices=prober.choices,
        )
        stack.push_async_callback(kernel.close)
        await kernel.start()
        return await _Daemon(config, state, member, kernel, own, prober=prober, user=user).run(server)


def _nonce(state: StateDir) -> bytes:
    """What proves to a router that a port is ours: known to nobody else, and the same after a restart. Raises
    StateError."""
    key = state.identity_key()
    return hmac.digest(key.text, b"wardmesh pcp nonce", "sha256")[:NONCE] if key is not None else os.urandom(NONCE)


async def _metrics(where: str, parts: Parts) -> None:
    """Answer Prometheus: its library is loaded where it is wanted, and nowhere else. Raises AgentError."""
    try:
        metrics = importlib.import_module(f"{__package__}.metrics")
    except ModuleNotFoundError as error:
        raise AgentError(f"metrics = {where!r}: {error.name} is not installed: install wardmesh[agentd]") from error
    await metrics.serve(where, partial(measure, parts))


def _group(user: User | None) -> int | None:
    """Whose members may ask, where nothing is configured: the gateway that we start must."""
    return user.gid if user is not None else None


class _Daemon:
    """The tasks of one running agentd, and what they tell each other."""

    def __init__(
        self,
        config: Config,
        state: StateDir,
        member: _Membership,
        kernel: Reconciler,
        own: OwnAddresses,
        *,
        prober: Prober,
        user: User | None,
    ) -> None:
        self._config, self._state, self._node, self._kernel, self._own = config, state, member.node, kernel, own
        self._applier = Applier(kernel, state, on_outcome=self._on_outcome)
        self._key = TunnelKey(member.key, state, kernel, self._applier)
        self._denied, self._records = DeniedLog(), RecordsPost()
        self._serving = Serving(self._serving_changed)
        self._gateway = GatewayProcess(config, user, self._serving) if user is not None else None
        self._naming = Naming(config)
        self._prober, self._path_log = prober, PathLog()
        notices = self._load_map()
        self._telling = Telling(
            self._applier,
            self._report,
            denied=lambda since: reports(self._denied, since, time.time()),
            serving=self._serving.health,
            paths=self._paths,
        )
        self._control = Control(
            state,
            self._node,
            self._applier,
            self._telling,
            asked=Asked(lambda question: tell(self._parts, question)),
            records=self._records,
        )
        prober.connect(
            private_key=lambda: self._key.raw,
            changed=lambda: self._applier.wake("paths"),
            seen=self._telling.changed,
            read=kernel.peers,
        )
        notices += self._hear_denied()
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._parts = Parts(
            config=config,
            state=state,
            node=self._node,
            kernel=kernel,
            applier=self._applier,
            control=self._control,
            telling=self._telling,
            key=self._key,
            own=own,
            prober=self._prober,
            denied=self._denied,
            records=self._records,
            serving=self._serving,
            naming=self._naming,
            notices=tuple(notices),
            started=datetime.now(UTC),
            leave=self._leave,
        )

    async def run(self, server: socket) -> int:
        """Run until a signal or `agentd leave`; returns the exit code. Raises what a task could not deal with."""
        for number, code in _EXIT_CODES.items():
            asyncio.get_running_loop().add_signal_handler(number, self._end, code)
        where = {"link": self._config.link, "backend": self._kernel.backend, "state_dir": self._state.path}
        log.info("agentd runs for %s in %s", self._node.name, self._node.mesh.name, extra=where)
        if self._applier.desired is None:
            self._tell_systemd("waiting for the first map")
        await self._until_ended(
            self._applier.run(),
            self._control.run(),
            self._watch_drift(),
            self._watch_addresses(),
            self._watch_sleep(),
            put_back.watch(partial(rotate, self._parts), self._state),
            self._naming.run(),
            self._prober.run(),
            serve(server, self._answer, self._answered, gateway_user=gateway_uid(self._config)),
            *([self._gateway.run()] if self._gateway is not None else []),
            *([_metrics(self._config.metrics, self._parts)] if self._config.metrics else []),
        )
        return self._ended.result()

    def _load_map(self) -> list[str]:
        """Make the saved map the desired one; returns what `agentd status` must say about it."""
        saved, notice = load(self._state)
        if saved is not None:
            self._applier.desire(saved, saved=True)
        if notice is not None:
            log.error("%s", notice)
        return [notice] if notice else []

    def _hear_denied(self) -> list[str]:
        """Listen to denied packets; without, everything else works: returns what `agentd status` must say then."""
        try:
            self._kernel.hear_denied(self._heard_denied)
        except KernelError as error:
            log.warning("%s", error)
            return [f"denied packets are counted but not listed: {error}"]
        return []

    def _heard_denied(self, flow: Flow) -> None:
        self._denied.add(flow, time.time())
        self._telling.denied_more()

    def _report(self) -> HostReport:
        return report(
            self._config,
            self._own.now,
            self._node.mesh,
            public_key=self._key.public,
            backend=self._kernel.backend,
            reflexive=self._prober.reflexive,
            relayed=self._prober.relayed,
        )

    def _paths(self) -> Paths:
        own = endpoints(self._config, self._own.now, self._node.mesh)
        reached = self._path_log.report(self._prober.reached(), datetime.now(UTC))
        return Paths(paths=reached, netcheck=netcheck_report(self._prober, own))

    async def _answer(self, request: Request) -> Answer | Handed | Subscription:
        return await answer(self._parts, request)

    def _answered(self, given: Answer) -> None:
        if isinstance(given, Left):
            self._end(0)

    async def _leave(self, force: bool) -> Left:
        if self._gateway is not None:
            await self._gateway.pause()
        self._control.leave(leaving=True)
        try:
            async with self._applier.paused():
                left = await leave(self._state, self._kernel, self._remove_more, force=force)
                self._applier.retire()
        except (AgentError, KernelError):
            self._control.leave(leaving=False)
            if self._gateway is not None:
                self._gateway.resume()
            raise
        log.info("left the mesh %s", self._node.mesh.name)
        return left

    async def _remove_more(self) -> list[str]:
        names = [*await self._naming.end(), *await self._prober.mapping.end()]
        return [*names, *(await self._gateway.end() if self._gateway is not None else [])]

    def _serving_changed(self) -> None:
        self._telling.serving_changed()
        if self._gateway is not None:
            self._gateway.wake()

    async def _watch_drift(self) -> None:
        async for reason in self._kernel.drift():
            self._applier.drifted(reason)
            self._telling.drifted(reason)

    async def _watch_addresses(self) -> None:
        async for addresses in self._own.changes():
            log.info("this host's addresses changed", extra={"addresses": len(addresses)})
            self._prober.moved()
            self._applier.wake("addresses")
            self._control.addresses_changed(item.address for item in addresses)

    async def _watch_sleep(self) -> None:
        async for seconds in naps():
            log.info("this host slept, or its clock was set forward", extra={"seconds": round(seconds)})
            self._prober.moved()
            self._control.slept()

    def _on_outcome(self, outcome: Outcome) -> None:
        if self._applier.in_force is not None:
            self._serving.adopt(self._applier.in_force)
            self._naming.adopt(self._applier.in_force)
            self._prober.adopt(self._applier.in_force)
        self._telling.changed()
        self._tell_systemd(
            f"revision {outcome.revision} is not in force: {outcome.error}"
            if outcome.error
            else f"in force revision={outcome.revision}"
        )

    def _tell_systemd(self, status: str) -> None:
        notify(READY="1", STATUS=status)

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    async def _until_ended(self, *parts: Coroutine[Any, Any, None]) -> None:
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            waited: list[asyncio.Future[Any]] = [self._ended, *tasks]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            notify(STOPPING="1")
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
