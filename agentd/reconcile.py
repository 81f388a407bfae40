"""Brings this host's kernel to what a map says, and tells when somebody else changes it: observe, plan, apply.

The only caller of `agentd.kernel`. Knows nothing of the controller, of files, or of how a map came to be.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from controller.wire.asking import Judged
from controller.wire.netmap import Netmap
from controller.wire.rules import Flow

from .denied import Flow as DeniedFlow
from .kernel.denials import DenialLog
from .kernel.device import Device
from .kernel.errors import refused
from .kernel.events import Hint, Watch
from .kernel.firewall import Firewall
from .kernel.hiding import hiding
from .kernel.judging import Judge
from .kernel.links import Links
from .kernel.readback import Readback
from .kernel.recompile import Recompiler
from .kernel.ruleset import identifier
from .kernel.userspace import UserspaceDevice
from .kernel.wireguard import KernelDevice
from .model import BackendName, Counted, Desired, Endpoint, Hiding, KernelError, LinkSettings, Observed, ObservedPeer
from .operations import (
    AddAddress,
    ChangeTable,
    CreateLink,
    Operation,
    PeerChange,
    PutRoute,
    RemoveAddress,
    RemoveLink,
    RemoveRoute,
    RemoveTable,
    ReplaceTable,
    SetDevice,
    SetLink,
)
from .plan import AS_MAPPED, Choices, desired, plan

__all__ = ["Applied", "KernelError", "LinkSettings", "Reconciler"]

# What no event tells: a WireGuard device that somebody wrote to, a peer whose endpoint went stale.
_LOOK_EVERY: Final = 60.0
_LISTED: Final = 3  # operations that a drift reason names


@dataclass(frozen=True, slots=True)
class Applied:
    """What one `apply` did. `messages` are netlink (or UAPI) messages that asked for a change."""

    operations: tuple[Operation, ...]
    messages: int
    nft_transactions: int


class Reconciler:
    """One link and one table, in the network namespace of the thread that calls `start`."""

    def __init__(
        self,
        settings: LinkSettings,
        private_key: bytes,
        *,
        choices: Choices = AS_MAPPED,
    ) -> None:
        self._settings = settings
        self._private_key = private_key
        self._choices = choices
        self._compile_table = Recompiler()
        self._turn = asyncio.Lock()
        self._netmap: Netmap | None = None
        self._in_force: _InForce | None = None
        self._hints: dict[str, Endpoint | None] = {}
        self._opened: _Opened | None = None
        self._denials: DenialLog | None = None

    # --- life ---

    async def start(self) -> None:
        """Open the sockets and pick the backend; changes nothing. Raises KernelError."""
        with ExitStack() as undo:
            links = Links()
            undo.callback(links.close)
            device = _pick_device(self._settings, links)
            undo.callback(device.close)
            try:
                watch = Watch(self._settings.name, self._settings.table)
            except OSError as error:
                raise refused("listening to the kernel's events", error) from error
            undo.callback(watch.close)
            firewall = Firewall(self._settings.table, watch.quiet)
            undo.callback(firewall.close)
            self._opened = _Opened(links, device, watch, firewall, Readback())
            undo.pop_all()

    async def close(self) -> None:
        """Close the sockets; what is in the kernel stays and goes on working."""
        if self._denials is not None:
            self._denials.close()
            self._denials = None
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def hear_denied(self, heard: Callable[[DeniedFlow], None]) -> None:
        """From now on, call `heard` for each denied packet that the table logs. Raises KernelError."""
        self._denials = DenialLog(heard)

    @property
    def backend(self) -> BackendName:
        """Which WireGuard carries the packets."""
        return self._open.device.backend

    # --- looking ---

    async def observe(self) -> Observed:
        """The host as it is now. Raises KernelError."""
        async with self._turn:
            return await self._observe()

    async def peers(self) -> Mapping[str, ObservedPeer]:
        """WireGuard's peers as they are now, by public key, and nothing else. Raises KernelError."""
        async with self._turn:
            device = await self._open.device.read(self._settings.name)
        return device.peers if device is not None else {}

    async def count(self) -> Counted:
        """What the table counted so far. Raises KernelError."""
        async with self._turn:
            packets = self._open.firewall.counters()
            rules = self._netmap.rules.values() if self._netmap is not None else ()
            grants = sorted({rule.grant for rule in rules})
        accepted = {grant: packets.get(f"grant/{identifier(grant)}") for grant in grants}
        return Counted(
            # A grant that another one covers wholly has no counter: nothing is accepted by it.
            accepted={grant: count for grant, count in accepted.items() if count is not None},
            denied={name.removeprefix("denied/"): count for name, count in packets.items() if name[:7] == "denied/"},
        )

    async def hiding(self) -> tuple[Hiding, ...]:
        """Which tables of others keep from passing what the map in force allows. Raises KernelError."""
        readback, netmap = self._open.readback, self._netmap
        listing = await readback.listing()
        return hiding(listing, readback, netmap, self._settings, time.time())

    async def judge(self, flows: Iterable[Flow]) -> list[Judged]:
        """What the tables in the kernel do with these flows now. Raises KernelError."""
        readback, netmap = self._open.readback, self._netmap
        if netmap is None:
            raise KernelError("no map is in force on this host yet")
        listing, now = await readback.listing(), time.time()
        judge = Judge(listing, readback, self._settings, netmap, now)
        return [judge.judge(flow) for flow in flows]

    async def plan(self, netmap: Netmap) -> tuple[Operation, ...]:
        """What `apply` would do now. Raises KernelError."""
        async with self._turn:
            return plan(self._desired(netmap), await self._observe())

    async def drift(self) -> AsyncIterator[str]:
        """What somebody else changed, whenever that happens; `apply` puts it back. Ends with `close`."""
        while (opened := self._opened) is not None:
            hints = await opened.watch.next(_LOOK_EVERY)
            async with self._turn:
                if self._opened is None:
                    return
                reason = await self._difference(hints)
            if reason is not None:
                yield reason

    # --- changing ---

    async def apply(self, netmap: Netmap) -> Applied:
        """Bring the host to this map. When it raises KernelError, the state that was in force before is in force."""
        async with self._turn:
            return await self._apply(netmap)

    async def set_private_key(self, key: bytes) -> None:
        """Use another private key from now on; peers need its public half before they can answer."""
        async with self._turn:
            old, self._private_key = self._private_key, key
            if self._netmap is None:
                return
            try:
                await self._apply(self._netmap)
            except KernelError:
                self._private_key = old
                raise

    async def remove(self) -> list[Operation]:
        """Remove everything that any run of agentd with these settings made; nothing to do is no error."""
        async with self._turn:
            opened, name = self._open, self._settings.name
            done: list[Operation] = []
            link = opened.links.find(name)
            if link is not None and link.ours:
                await self._do(RemoveLink(name, "agentd leaves"))
                done.append(RemoveLink(name, "agentd leaves"))
            if UserspaceDevice.available():
                await UserspaceDevice(opened.links, self._settings.mtu).remove(name)  # a process without a link
            if await opened.firewall.remove():
                done.append(RemoveTable(self._settings.table))
            self._netmap = self._in_force = None
            self._hints.clear()
            return done

    # --- how ---

    @property
    def _open(self) -> "_Opened":
        if self._opened is None:
            raise KernelError("the reconciler is not started")
        return self._opened

    def _desired(self, netmap: Netmap) -> Desired:
        return desired(
            netmap,
            self._settings,
            _public_key(self._private_key),
            now=time.time(),
            choices=self._choices,
            compile_table=self._compile_table,
        )

    async def _observe(self) -> Observed:
        opened, name = self._open, self._settings.name
        link = opened.links.find(name)
        opened.watch.follow(link.index if link else 0)
        ours = link is not None and link.ours
        addresses, held = (
            opened.links.addresses(link.index) if link is not None and ours else (frozenset(), frozenset())
        )
        return Observed(
            backend=opened.device.backend,
            now=time.time(),
            link=link,
            device=await opened.device.read(name) if link is not None and ours else None,
            addresses=addresses,
            held=held,
            routes=opened.links.routes(link.index) if link is not None and ours else frozenset(),
            ruleset=opened.firewall.in_force,
            table_present=opened.firewall.present(),
            hints=dict(self._hints),
        )

    async def _apply(self, netmap: Netmap) -> Applied:
        opened = self._open
        wanted = self._desired(netmap)
        before = await self._observe()
        operations = plan(wanted, before)
        transactions = opened.firewall.transactions
        try:
            messages = await self._run(operations, self._private_key)
        except KernelError as error:
            await self._restore(before, error)
            raise
        # What is done once is done: looking again is not a reason to do it again.
        self._netmap, self._in_force = netmap, _InForce(replace(wanted, anew=frozenset()), self._private_key)
        self._hints = {key: peer.endpoint for key, peer in wanted.peers.items()}
        if opened.firewall.in_force is None:
            opened.watch.poke("table")  # somebody else committed at the same moment, perhaps to our table
        return Applied(operations, messages, opened.firewall.transactions - transactions)

    async def _run(self, operations: Iterable[Operation], private_key: bytes) -> int:
        """Do the operations in order, neighbouring WireGuard changes in one write; returns the number of messages."""
        opened, messages = self._open, -self._open.links.writes
        for together, group in groupby(operations, key=lambda operation: isinstance(operation, SetDevice | PeerChange)):
            if together:
                changes = [change for change in group if isinstance(change, SetDevice | PeerChange)]
                messages += await opened.device.write(self._settings.name, changes, private_key)
            else:
                for operation in group:
                    await self._do(operation)
        return messages + opened.links.writes

    async def _do(self, operation: Operation) -> None:
        links, firewall, name = self._open.links, self._open.firewall, self._settings.name
        match operation:
            case ReplaceTable(ruleset=ruleset):
                await firewall.replace(ruleset)
            case ChangeTable(old=old, new=new):
                await firewall.change(old, new)
            case RemoveTable():
                await firewall.remove()
            case CreateLink():
                await self._open.device.create(name)
            case SetLink(mtu=mtu, up=up):
                links.configure(name, mtu=mtu, up=up)
            case RemoveLink():
                link = links.find(name)
                if link is not None and link.kind == UserspaceDevice.link_kind:
                    await UserspaceDevice(links, self._settings.mtu).remove(name)
                links.remove(name)
            case AddAddress(network=network, held=held):
                links.add_address(name, network, held=held)
            case RemoveAddress(network=network):
                links.remove_address(name, network)
            case PutRoute(route=route, replace=replace):
                links.put_route(name, route, replace=replace)
            case RemoveRoute(route=route):
                links.remove_route(name, route)
            case SetDevice() | PeerChange():
                await self._open.device.write(name, [operation], self._private_key)

    async def _restore(self, before: Observed, failure: KernelError) -> None:
        """Undo a half-done apply. Raises KernelError, from `failure`, when that fails too."""
        try:
            if self._in_force is not None:
                operations = plan(self._in_force.desired, await self._observe())
                await self._run(operations, self._in_force.private_key)
                return
            # The first of this process: what an earlier process left, if anything, is not known well enough to be
            # written again; what was not there before must not be there now.
            link = self._open.links.find(self._settings.name)
            if before.link is None and link is not None and link.ours:
                await self._do(RemoveLink(self._settings.name, "undone"))
            if not before.table_present:
                await self._do(RemoveTable(self._settings.table))
        except KernelError as second:
            raise KernelError(f"{failure}; putting back what was in force failed too: {second}") from failure

    async def _difference(self, hints: frozenset[Hint]) -> str | None:
        firewall = self._open.firewall
        if "table" in hints or ("unknown" in hints and firewall.changed_elsewhere()):
            firewall.forget()
        if self._in_force is None:
            return None
        try:
            if "address" in hints:
                await self._open.device.forget_sources(self._settings.name, self._settings.listen_port)
            operations = plan(self._in_force.desired, await self._observe())
            if all(isinstance(operation, PeerChange) and operation.is_endpoint_alone() for operation in operations):
                # Peers fell silent where they had roamed to. Nobody changed anything; look for them at the hint.
                await self._run(operations, self._in_force.private_key)
                return None
        except KernelError as error:
            return str(error)  # the next apply says so too, and that is reported
        listed = "; ".join(str(operation) for operation in operations[:_LISTED])
        more = len(operations) - _LISTED
        return f"{listed}; and {more} more" if more > 0 else listed or None


@dataclass(frozen=True, slots=True)
class _InForce:
    desired: Desired
    private_key: bytes


@dataclass(frozen=True, slots=True)
class _Opened:
    """What `start` opens."""

    links: Links
    device: Device
    watch: Watch
    firewall: Firewall
    readback: Readback

    def close(self) -> None:
        self.readback.close()
        self.watch.close()
        self.firewall.close()
        self.device.close()
        self.links.close()


def _pick_device(settings: LinkSettings, links: Links) -> Device:
    if settings.backend != "userspace":
        kernel = KernelDevice.open(links)
        if kernel is not None:
            return kernel
        if settings.backend == "kernel":
            raise KernelError(
                "this kernel has no WireGuard, and the configuration asks for the kernel's: install a kernel with "
                "CONFIG_WIREGUARD, or allow the userspace backend"
            )
    if UserspaceDevice.available():
        return UserspaceDevice(links, settings.mtu)
    lacks = "" if settings.backend == "userspace" else "this kernel has no WireGuard, and "
    raise KernelError(f"{lacks}wireguard-go is not installed: install the package wireguard-go")


def _public_key(private_key: bytes) -> str:
    public = X25519PrivateKey.from_private_bytes(private_key).public_key()
    return base64.b64encode(public.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
