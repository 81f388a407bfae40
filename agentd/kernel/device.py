"""What the two ways to have a WireGuard device have in common, as a type. Both pass one test class."""

from collections.abc import Sequence
from typing import Protocol

from agentd.model import BackendName, ObservedDevice
from agentd.operations import PeerChange, SetDevice

__all__ = ["Device", "DeviceChange"]

DeviceChange = SetDevice | PeerChange


class Device(Protocol):
    """A WireGuard device by the name of its link. Every method raises KernelError."""

    @property
    def backend(self) -> BackendName:
        """Which of the two this is."""

    @property
    def link_kind(self) -> str:
        """What the link says of itself (IFLA_INFO_KIND)."""

    async def create(self, name: str) -> None:
        """Make the link, marked as ours, down. Undoes itself when it fails."""

    async def read(self, name: str) -> ObservedDevice | None:
        """The device with all its peers; None when the link is not one of this backend, or does not work."""

    async def write(self, name: str, changes: Sequence[DeviceChange], private_key: bytes) -> int:
        """Make the changes, in as few messages as their size allows; returns how many those were.

        When it raises, a part of the changes may be in force: the caller looks again and decides.
        """

    async def forget_sources(self, name: str, listen_port: int) -> None:
        """The host lost an address: send from whatever it has now."""

    async def remove(self, name: str) -> None:
        """Remove the link and all that belongs to it; no error when there is none."""

    def close(self) -> None:
        """Close what is open; the device stays."""
