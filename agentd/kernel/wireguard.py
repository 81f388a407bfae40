"""WireGuard in the kernel, by its generic netlink family (drivers/net/wireguard/netlink.c).

Knows nothing of maps and policies; the bytes of its messages are in `wgcodec`.
"""

import errno
import struct
from collections.abc import Sequence
from typing import Final

from agentd.model import BackendName, KernelError, ObservedDevice

from .device import DeviceChange
from .errors import refused
from .links import Links
from .netlink import NETLINK_GENERIC, NetlinkError, NetlinkSocket, attribute, attributes
from .wgcodec import GENL, decode_device, encode_changes, encode_get

__all__ = ["KernelDevice"]

# include/uapi/linux/genetlink.h
_GENL_ID_CTRL: Final = 0x10
_CTRL_CMD_GETFAMILY: Final = 3
_CTRL_ATTR_FAMILY_ID: Final = 1
_CTRL_ATTR_FAMILY_NAME: Final = 2


class KernelDevice:
    """The kernel's own WireGuard. Construct with `open`."""

    backend: Final[BackendName] = "kernel"
    link_kind: Final = "wireguard"

    def __init__(self, links: Links, netlink: NetlinkSocket, family: int) -> None:
        self._links = links
        self._netlink = netlink
        self._family = family

    @classmethod
    def open(cls, links: Links) -> "KernelDevice | None":
        """None when this kernel has no WireGuard (asking loads the module where there is one)."""
        netlink = NetlinkSocket(NETLINK_GENERIC)
        try:
            return cls(links, netlink, _family(netlink))
        except NetlinkError as error:
            netlink.close()
            if error.errno == errno.ENOENT:
                return None
            raise refused("finding WireGuard in the kernel", error) from error

    async def create(self, name: str) -> None:
        """Make the link."""
        self._links.create(name, self.link_kind)

    async def read(self, name: str) -> ObservedDevice | None:
        """The device with all its peers; None when the link is no WireGuard device."""
        try:
            return decode_device(self._netlink.dump(self._family, encode_get(name)))
        except NetlinkError as error:
            if error.errno in {errno.ENODEV, errno.EOPNOTSUPP}:
                return None
            raise refused(f"reading WireGuard's state of {name}", error) from error

    async def write(self, name: str, changes: Sequence[DeviceChange], private_key: bytes) -> int:
        """Make the changes."""
        count = 0
        for payload in encode_changes(name, changes, private_key):
            try:
                self._netlink.write(self._family, 0, payload)
            except NetlinkError as error:
                raise refused(f"writing {len(changes)} WireGuard changes to {name}", error) from error
            count += 1
        return count

    async def forget_sources(self, name: str, listen_port: int) -> None:
        """Nothing to do: the kernel checks the source address that it remembers before it uses it."""

    async def remove(self, name: str) -> None:
        """Remove the link."""
        self._links.remove(name)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()


def _family(netlink: NetlinkSocket) -> int:
    payload = GENL.pack(_CTRL_CMD_GETFAMILY, 1, 0)
    payload += attribute(_CTRL_ATTR_FAMILY_NAME, b"wireguard\0")
    answer = netlink.ask(_GENL_ID_CTRL, payload)
    for kind, start, _end in attributes(answer, GENL.size):
        if kind == _CTRL_ATTR_FAMILY_ID:
            return int(struct.unpack_from("=H", answer, start)[0])
    raise KernelError("the kernel names WireGuard but not its netlink family: this kernel is damaged; restart the host")
