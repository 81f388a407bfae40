"""Our nftables table in the kernel: writes a `Ruleset` in one transaction, and knows whether it is still in force.

Writes to no other table. What the rules mean is in `ruleset`.
"""

import asyncio
import errno
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Final

from agentd.model import Chain, Container, KernelError, Ruleset

from .counters import read_counters
from .errors import refused
from .netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket, attribute, attributes
from .nftables import Nftables

__all__ = ["Firewall", "read_generation", "render_change", "render_table"]

# include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h
_NFTABLES: Final = 10 << 8
_NFT_MSG_GETTABLE: Final = _NFTABLES | 1
_NFT_MSG_GETGEN: Final = _NFTABLES | 16
_NFTA_TABLE_NAME: Final = 1
_NFTA_GEN_ID: Final = 1
_NFPROTO_UNSPEC: Final = 0
_NFPROTO_INET: Final = 1
_NFGENMSG: Final = struct.Struct("=BBH")
_LARGE: Final = 4096  # bytes of a transaction from which on the event loop should not wait for it


def render_table(ruleset: Ruleset) -> str:
    """The table whole, replacing whatever was there: one transaction, so that no packet meets half a table."""
    table = ruleset.table
    return "\n".join(
        (
            f"add table inet {table}",  # makes the next line work where there was none
            f"delete table inet {table}",
            f"add table inet {table}",
            *_declare(table, ruleset.counters, ruleset.containers, ruleset.chains),
            *(_rule(table, name, rule) for name, chain in ruleset.chains.items() for rule in chain.rules),
            *(_add(table, name, keys) for name, keys in ruleset.elements.items() if keys),
            "",
        )
    )


def render_change(old: Ruleset, new: Ruleset) -> str | None:
    """What turns `old` into `new`, keeping the counters of what stays; None when only the whole table will do."""
    if old.table != new.table or _hooks(old) != _hooks(new):
        return None
    if any(old.containers[name] != new.containers[name] for name in old.containers.keys() & new.containers.keys()):
        return None  # a container's type cannot be changed in place
    return "\n".join(_change(old, new)) + "\n"


def _hooks(ruleset: Ruleset) -> dict[str, str]:
    return {name: chain.hook for name, chain in ruleset.chains.items() if chain.hook is not None}


def _change(old: Ruleset, new: Ruleset) -> Iterator[str]:
    table = new.table
    # New things first, so that rules and elements can name them; what goes away last, when nothing names it.
    yield from _declare(
        table,
        new.counters - old.counters,
        {name: container for name, container in new.containers.items() if name not in old.containers},
        {name: chain for name, chain in new.chains.items() if name not in old.chains},
    )
    for name, chain in new.chains.items():
        before = old.chains.get(name)
        if before == chain:
            continue
        if before is not None:
            yield f"flush chain inet {table} {name}"
        yield from (_rule(table, name, rule) for rule in chain.rules)
    gone = [name for name in old.chains if name not in new.chains]
    yield from (f"flush chain inet {table} {name}" for name in gone)
    for name, keys in new.elements.items():
        before_keys = old.elements.get(name, {})
        if keys is before_keys:
            continue
        different = sorted(before_keys.items() ^ keys.items())  # by far the quickest way to compare ten thousand
        removed = [key for key, verdict in different if before_keys.get(key) == verdict]
        added = {key: verdict for key, verdict in different if keys.get(key) == verdict}
        if removed:
            yield f"delete element inet {table} {name} {{ {', '.join(removed)} }}"
        if added:
            yield _add(table, name, added)
    for name, container in old.containers.items():
        if name not in new.containers:
            yield f"delete {container.kind} inet {table} {name}"
    yield from (f"delete chain inet {table} {name}" for name in gone)
    yield from (f"delete counter inet {table} {name}" for name in sorted(old.counters - new.counters))


def _declare(
    table: str, counters: Iterable[str], containers: Mapping[str, Container], chains: Mapping[str, Chain]
) -> Iterator[str]:
    yield from (f"add counter inet {table} {name}" for name in sorted(counters))
    for name, chain in chains.items():
        yield f"add chain inet {table} {name}" + (f" {{ {chain.hook} ; }}" if chain.hook is not None else "")
    for name, container in containers.items():
        yield f"add {container.kind} inet {table} {name} {{ {container.type} ; }}"


def _rule(table: str, chain: str, rule: str) -> str:
    return f"add rule inet {table} {chain} {rule}"


def _add(table: str, name: str, keys: Mapping[str, str]) -> str:
    return f"add element inet {table} {name} {{ {', '.join(f'{key} : {verdict}' for key, verdict in keys.items())} }}"


class Firewall:
    """The table of one name. `in_force` is what it holds, None while that is not known.

    `quiet` is entered around our own transactions: whoever listens to nft's events need not hear of them.
    """

    def __init__(self, table: str, quiet: Callable[[], AbstractContextManager[None]]) -> None:
        self._table = table
        self._quiet = quiet
        self.in_force: Ruleset | None = None
        self.transactions = 0
        self._nftables = Nftables()
        try:
            self._netlink = NetlinkSocket(NETLINK_NETFILTER)
            self._generation = read_generation(self._netlink)
        except OSError as error:
            self._nftables.close()
            raise refused("asking the kernel for nftables", error, _REMEDY) from error

    def close(self) -> None:
        """Close the sockets; the table stays."""
        self._netlink.close()
        self._nftables.close()

    def forget(self) -> None:
        """Somebody else wrote to the table: nothing is known of it any more."""
        self.in_force = None

    def changed_elsewhere(self) -> bool:
        """True when anybody committed to any table since our own last transaction."""
        return read_generation(self._netlink) != self._generation

    def present(self) -> bool:
        """True when the table exists."""
        payload = _NFGENMSG.pack(_NFPROTO_INET, 0, 0) + attribute(_NFTA_TABLE_NAME, self._table.encode() + b"\0")
        try:
            self._netlink.ask(_NFT_MSG_GETTABLE, payload)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return False
            raise refused(f"looking for table inet {self._table}", error, _REMEDY) from error
        return True

    def counters(self) -> dict[str, int]:
        """Packets by the name of the counter, since the table was last written whole; none without the table."""
        try:
            return read_counters(self._netlink, self._table)
        except NetlinkError as error:
            raise refused(f"reading the counters of table inet {self._table}", error, _REMEDY) from error

    async def replace(self, ruleset: Ruleset) -> None:
        """Write the whole table."""
        await self._commit(render_table(ruleset), ruleset)

    async def change(self, old: Ruleset, new: Ruleset) -> None:
        """Turn `old`, which is in force, into `new`."""
        text = render_change(old, new)
        await self._commit(render_table(new) if text is None else text, new)

    async def remove(self) -> bool:
        """Remove the table; False when there was none."""
        if not self.present():
            return False
        await self._commit(f"add table inet {self._table}\ndelete table inet {self._table}\n", None)
        return True

    async def _commit(self, text: str, result: Ruleset | None) -> None:
        known, self.in_force = self.in_force, None  # until it is over: we may be cancelled half-way
        # The generation is read outside the quiet time, so that a commit by another is either heard or counted.
        before = read_generation(self._netlink)
        with self._quiet():
            message = await self._run(text)
        self._generation = read_generation(self._netlink)
        commits = (self._generation - before) & 0xFFFFFFFF  # each transaction, to whatever table, adds one
        if message is not None:
            self.in_force = known if commits == 0 else None
            raise _nft_refused(self._table, message)
        self.transactions += 1
        self.in_force = result if commits == 1 else None

    async def _run(self, text: str) -> str | None:
        if len(text) < _LARGE:
            return self._nftables.run(text)
        # To its end, even when the caller is cancelled meanwhile: the context serves one transaction at a time.
        running = asyncio.ensure_future(asyncio.to_thread(self._nftables.run, text))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await running
            raise


def read_generation(netlink: NetlinkSocket) -> int:
    """A number that every committed transaction, to whatever table, makes greater by one. Raises NetlinkError."""
    answer = netlink.ask(_NFT_MSG_GETGEN, _NFGENMSG.pack(_NFPROTO_UNSPEC, 0, 0))
    for kind, start, end in attributes(answer, _NFGENMSG.size):
        if kind == _NFTA_GEN_ID:
            return int.from_bytes(answer[start:end], "big")
    raise NetlinkError(errno.EBADMSG, "the kernel gave no nftables generation")


_REMEDY: Final = "nftables needs CAP_NET_ADMIN and a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET"


def _nft_refused(table: str, message: str) -> KernelError:
    """nft's complaint without the text of our own transaction, which may be megabytes."""
    lines = [line for line in message.splitlines() if "Error:" in line or "rror" in line]
    reason = (lines[0] if lines else message[:300]).strip() or "it gave no reason"
    if "Operation not permitted" in message:
        remedy = "this process needs CAP_NET_ADMIN: run agentd as root or from its systemd unit"
    elif "No such file or directory" in message or "not supported" in message:
        remedy = "this kernel lacks a part of nftables (conntrack, log, limit, counter): load or install its modules"
    else:
        remedy = "the table that was in force stays"
    return KernelError(f"nft refused table inet {table}: {reason}; {remedy}")
