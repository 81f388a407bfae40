"""Reads the tables of the kernel back: ours and everybody else's. Writes nothing.

The listing is kept until any table changes, which the kernel counts.
"""

import asyncio
from collections.abc import Sequence

from agentd.model import KernelError

from .conditions import Found
from .elements import NamedSet, UnknownKeyError, find_element
from .firewall import read_generation
from .listing import Listing, needs_text, parse_listing
from .netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket
from .nftables import Nftables
from .verdicts import Lookup

__all__ = ["Readback"]


class Readback(Lookup):
    """The tables in the network namespace of the thread that constructs it."""

    def __init__(self) -> None:
        """Raises KernelError."""
        self._nftables = Nftables()
        try:
            self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        except OSError as error:
            self._nftables.close()
            raise KernelError(f"a netlink socket could not be opened: {error.strerror}") from error
        self._turn = asyncio.Lock()
        self._kept: tuple[int, Listing] | None = None

    def close(self) -> None:
        """Close the sockets."""
        self._netlink.close()
        self._nftables.close()

    async def listing(self) -> Listing:
        """All tables as they are now. Raises KernelError."""
        async with self._turn:
            try:
                generation = read_generation(self._netlink)
            except NetlinkError as error:
                raise KernelError(f"the kernel did not tell its nftables generation: {error.strerror}") from error
            if self._kept is None or self._kept[0] != generation:
                # To its end, even when the caller is cancelled meanwhile: the context serves one command at a time.
                running = asyncio.ensure_future(asyncio.to_thread(self._list))
                try:
                    listing = await asyncio.shield(running)
                except asyncio.CancelledError:
                    await running
                    raise
                self._kept = generation, listing
            return self._kept[1]

    def find(self, family: str, table: str, name: str, key: Sequence[object]) -> Found | None:
        """As Lookup.find, from the kernel and as of now; the key's types are those of the last listing."""
        types = self._kept[1].sets.get((family, table, name), ()) if self._kept is not None else ()
        try:
            return find_element(self._netlink, NamedSet(family, table, name, types), key)
        except (UnknownKeyError, NetlinkError) as error:
            raise LookupError(f"{name} in table {family} {table}: {error}") from error

    def _list(self) -> Listing:
        listed = self._nftables.list_ruleset(json=True)
        text = self._nftables.list_ruleset(json=False) if needs_text(listed) else ""
        return parse_listing(listed, text)
