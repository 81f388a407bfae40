"""WireGuard in a process, for hosts whose kernel has none: `wireguard-go`, over its configuration protocol (UAPI).

The fallback, not the path: every packet crosses into user space and back. The protocol is at
https://www.wireguard.com/xplatform/ and is spoken here directly, because PyPI's `wireguard-tools` sends only whole
devices (ending every session at each change), and writes IPv6 endpoints and preshared keys wrongly.
"""

import asyncio
import base64
import hashlib
import logging
import os
import socket
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agentd.model import NO_PRESHARED_KEY, BackendName, Endpoint, KernelError, Network, ObservedDevice, ObservedPeer
from agentd.operations import PeerChange, SetDevice

from . import process
from .device import DeviceChange
from .errors import refused
from .links import Links

__all__ = ["UserspaceDevice", "decode_uapi", "encode_uapi", "socket_path"]

log = logging.getLogger("agentd.kernel.userspace")

_PROGRAM: Final = "wireguard-go"
_DIRECTORY: Final = Path("/var/run/wireguard")  # fixed in the program
_START_TIMEOUT: Final = 10.0
_POLL: Final = 0.02
_ANSWER_TIMEOUT: Final = 10.0
_UCRED: Final = struct.Struct("=iII")


def encode_uapi(changes: Iterable[DeviceChange], private_key: bytes) -> str:
    """The changes as one `set=1` operation; it has no limit of length."""
    device: list[str] = []
    peers: list[str] = []
    for change in changes:
        if isinstance(change, SetDevice):
            device += [f"private_key={private_key.hex()}"] if change.public_key is not None else []
            device += [f"listen_port={change.listen_port}"] if change.listen_port is not None else []
            device += ["replace_peers=true"] if change.replace_peers else []
        else:
            peers += _encode_peer(change)
    return "\n".join(("set=1", *device, *peers, "", ""))


def _encode_peer(change: PeerChange) -> Iterator[str]:
    yield f"public_key={base64.b64decode(change.public_key).hex()}"
    if change.action == "remove":
        yield "remove=true"
        return
    if change.action == "change":
        yield "update_only=true"
    if change.preshared_key is not None:
        yield f"preshared_key={change.preshared_key.hex()}"
    if change.endpoint is not None:
        yield f"endpoint={change.endpoint}"
    if change.keepalive is not None:
        yield f"persistent_keepalive_interval={change.keepalive}"
    if change.replace_allowed_ips:
        yield "replace_allowed_ips=true"
    yield from (f"allowed_ip={network}" for network in change.allowed_ips)


def decode_uapi(text: str) -> ObservedDevice:
    """The device from the answer to `get=1`."""
    public_key, listen_port = "", 0
    peers: list[dict[str, list[str]]] = []
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "private_key":
            public_key = _public_key(bytes.fromhex(value))
        elif key == "listen_port":
            listen_port = int(value)
        elif key == "public_key":
            peers.append({key: [value]})
        elif peers:
            peers[-1].setdefault(key, []).append(value)
    found = [_decode_peer(peer) for peer in peers]
    return ObservedDevice(
        public_key=public_key, listen_port=listen_port, peers={peer.public_key: peer for peer in found}
    )


def _public_key(private_key: bytes) -> str:
    public = X25519PrivateKey.from_private_bytes(private_key).public_key()
    return base64.b64encode(public.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def _decode_peer(fields: dict[str, list[str]]) -> ObservedPeer:
    def number(name: str) -> int:
        return int(fields.get(name, ["0"])[0])

    return ObservedPeer(
        public_key=base64.b64encode(bytes.fromhex(fields["public_key"][0])).decode(),
        allowed_ips=frozenset(Network.parse(prefix) for prefix in fields.get("allowed_ip", [])),
        endpoint=_decode_endpoint(fields["endpoint"][0]) if "endpoint" in fields else None,
        keepalive=number("persistent_keepalive_interval"),
        preshared_key=bytes.fromhex(fields["preshared_key"][0]) if "preshared_key" in fields else NO_PRESHARED_KEY,
        last_handshake=number("last_handshake_time_sec") + number("last_handshake_time_nsec") / 1e9,
        rx_bytes=number("rx_bytes"),
        tx_bytes=number("tx_bytes"),
    )


def _decode_endpoint(text: str) -> Endpoint:
    # A zone, `[fe80::1%2]:51820`, is what the process that sent it had; Endpoint keeps it apart.
    host, _, port = text.rpartition(":")
    address, _, zone = host.strip("[]").partition("%")
    scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone) if zone else 0
    return Endpoint(Network.host(address).address, int(port), scope)


def _tun_name(name: str) -> str:
    """What the link is called until it is renamed, and its socket for ever.

    The program puts its socket, named after the link, into one directory of the file system, which network namespaces
    share: so the name has to be different for each link in each namespace.
    """
    namespace = Path("/proc/thread-self/ns/net").stat().st_ino
    return f"wm{hashlib.sha256(f'{namespace} {name}'.encode()).hexdigest()[:12]}"


def socket_path(name: str) -> Path:
    """The configuration socket of the link of that name in this network namespace."""
    return _DIRECTORY / f"{_tun_name(name)}.sock"


class UserspaceDevice:
    """A `wireguard-go` process per link. It outlives us, as the kernel's WireGuard would."""

    backend: Final[BackendName] = "userspace"
    link_kind: Final = "tun"

    def __init__(self, links: Links, mtu: int) -> None:
        self._links = links
        self._mtu = mtu
        self._child: int | None = None

    @staticmethod
    def available() -> bool:
        """True when the program is installed."""
        return process.find(_PROGRAM) is not None

    async def create(self, name: str) -> None:
        """Start the process and make its link ours; undone when that fails."""
        await self._stop(name)  # one whose link was removed
        temporary = _tun_name(name)
        # Unnamed, and gone with the process.
        with tempfile.TemporaryFile() as messages:
            pid = process.spawn(
                _PROGRAM, "-f", temporary, environment={"LOG_LEVEL": "error"}, messages=messages, install=_PROGRAM
            )
            try:
                await self._started(name, pid, messages)
                self._links.adopt(temporary, name, self._mtu)
            except KernelError:
                await process.stop(pid)
                socket_path(name).unlink(missing_ok=True)
                raise
        self._child = pid
        log.warning(
            "this kernel has no WireGuard: packets go through wireguard-go, in user space", extra={"link": name}
        )

    async def _started(self, name: str, pid: int, messages: IO[bytes]) -> None:
        for _ in range(round(_START_TIMEOUT / _POLL)):
            if _listener(socket_path(name)) is not None:
                return
            if (code := process.ended(pid)) is not None:
                messages.seek(0)
                said = messages.read().decode(errors="replace").strip().splitlines()[-1:]
                raise KernelError(
                    f"{_PROGRAM} ended with {code} ({' '.join(said) or 'no message'}): it needs CAP_NET_ADMIN, "
                    f"/dev/net/tun and a writable {_DIRECTORY}"
                )
            await asyncio.sleep(_POLL)
        raise KernelError(f"{_PROGRAM} did not start within {_START_TIMEOUT:.0f} s: the host is overloaded")

    async def read(self, name: str) -> ObservedDevice | None:
        """The device with all its peers; None when no process is behind the link."""
        if _listener(socket_path(name)) is None:
            return None
        answer = await self._talk(name, "get=1\n\n")
        return decode_uapi(answer)

    async def write(self, name: str, changes: Sequence[DeviceChange], private_key: bytes) -> int:
        """Make the changes, in one message."""
        await self._talk(name, encode_uapi(changes, private_key))
        return 1

    async def forget_sources(self, name: str, listen_port: int) -> None:
        """Bind again, which makes the program forget the sources that it remembers for its peers.

        It uses them until sending fails with EINVAL; for an address that is gone, Linux says ENETUNREACH.
        """
        if _listener(socket_path(name)) is not None:
            await self._talk(name, f"set=1\nlisten_port={listen_port}\n\n")

    async def remove(self, name: str) -> None:
        """Stop the process; the link goes with it."""
        await self._stop(name)

    def close(self) -> None:
        """Nothing is kept open."""

    async def _talk(self, name: str, request: str) -> str:
        path = socket_path(name)
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(path, limit=1 << 26)
                try:
                    writer.write(request.encode())
                    answer = (await reader.readuntil(b"\n\n")).decode()
                finally:
                    writer.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            raise KernelError(
                f"{_PROGRAM} does not answer on {path} ({error}): it has ended; it is started again at the next attempt"
            ) from error
        status = next((line[6:] for line in answer.splitlines() if line.startswith("errno=")), "0")
        if status != "0":
            code = abs(int(status))
            raise refused(f"configuring {name} through {_PROGRAM}", OSError(code, os.strerror(code)))
        return answer

    async def _stop(self, name: str) -> None:
        path = socket_path(name)
        pid = _listener(path)
        if pid is not None:
            await process.stop(pid)
        if self._child is not None:
            await process.stop(self._child)  # it may have ended by itself, and has to be collected
            self._child = None
        path.unlink(missing_ok=True)


def _listener(path: Path) -> int | None:
    """The process that listens on the socket; the kernel remembers who made it (SO_PEERCRED), so no file has to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except PermissionError as error:
            raise refused(f"opening {path}", error, "it belongs to another user: run agentd as that user") from error
        return int(_UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0])
