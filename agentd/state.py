"""The state directory: what this host must remember, one file each, private to its owner and never half-written.

`node.json` is written last when joining: a directory without it belongs to no mesh. Keys are never in a file that is
rewritten for another reason, so losing a map cannot lose them. Knows nothing of networks.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pydantic import ValidationError

from controller.wire.base import Address, Message, NodeName
from controller.wire.netmap import Mesh, NodeId
from controller.wire.stream import Controllers

from .errors import StateError
from .keys import IdentityKey, KeyDamagedError, WireguardKey
from .seal import BrokenSealError, seal, seal_json, unseal, unseal_json

__all__ = [
    "CA",
    "CERTIFICATE",
    "CLOCK",
    "CONTROLLERS",
    "IDENTITY_KEY",
    "NETMAP",
    "NODE",
    "WIREGUARD_KEY",
    "NodeFile",
    "StateDir",
]

log = logging.getLogger("agentd.state")

WIREGUARD_KEY: Final = "wireguard.key"
IDENTITY_KEY: Final = "identity.key"
CERTIFICATE: Final = "certificate.pem"
CA: Final = "ca.pem"
NODE: Final = "node.json"
NETMAP: Final = "netmap.json"
CONTROLLERS: Final = "controllers.json"
CLOCK: Final = "clock"  # empty: when it was last written is all that it says
_LOCK: Final = "lock"
_RESERVE: Final = "reserve"
_PEM: Final = serialization.Encoding.PEM
_SEALED: Final = {WIREGUARD_KEY, IDENTITY_KEY, CERTIFICATE, CA}
_FILES: Final = (NODE, NETMAP, CONTROLLERS, CERTIFICATE, CA, WIREGUARD_KEY, IDENTITY_KEY, _RESERVE, CLOCK, _LOCK)


class NodeFile(Message):
    """Which mesh this host is in, and as what.

    `trust` says against what the controller's TLS certificate is checked: `ca.pem`, which is the mesh's own CA (and
    follows it when that is replaced) or was pinned by the join string (and stays), or the host's own trust store.
    """

    format: Literal[1] = 1
    url: str
    trust: Literal["mesh", "pinned", "system"]
    ca: str  # SHA-256 of the CA that the join string named, or "system"
    node_id: NodeId
    name: NodeName
    mesh: Mesh
    addresses: tuple[Address, ...]


class StateDir:
    """One state directory. Whoever writes to it holds `lock()`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> bool:
        """Make the directory, readable by its owner only; True when it was not there. Raises StateError."""
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError:
            return False
        except OSError as error:
            raise _refusal(self.path, "make", error) from error
        return True

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process alone. Raises StateError when another agentd holds it."""
        path = self.path / _LOCK
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            raise StateError(f"{self.path} does not exist: this host has not joined; run `agentd join` first") from None
        except OSError as error:
            raise _refusal(path, "write", error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            process = f" (process {holder})" if holder.isdigit() else ""
            raise StateError(f"another agentd{process} is using {self.path}: stop it, or give --state-dir") from None
        try:
            # Only the message above reads the number, and a full disk must not keep a joined host from starting.
            with suppress(OSError):
                self._own(descriptor)
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
            yield
        finally:
            os.close(descriptor)

    def read(self, name: str) -> bytes | None:
        """The file's content, None when there is none. Raises StateError, also when its checksum does not match."""
        path = self.path / name
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _refusal(path, "read", error) from error
        try:
            return unseal(content) if name in _SEALED else content
        except BrokenSealError as error:
            raise _damaged(path, str(error)) from error

    def write(self, name: str, content: bytes) -> None:
        """Replace the file as a whole: after a power cut there is the old content or the new. Raises StateError."""
        content = seal(content) if name in _SEALED else content
        temporary, path = self.path / f".{name}.tmp", self.path / name
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.fchmod(descriptor, 0o600)
                self._own(descriptor)
                _write_all(descriptor, content)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(path)
            self._sync()
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise _refusal(path, "write", error) from error

    def remove(self, name: str) -> None:
        """Delete the file if it is there. Raises StateError."""
        path = self.path / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _refusal(path, "remove", error) from error

    def set_aside(self, name: str) -> Path:
        """Rename a damaged file out of the way and return where it is now. Raises StateError."""
        path = self.path / name
        aside = path.with_name(f"{name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        try:
            path.rename(aside)
            self._sync()
        except OSError as error:
            raise _refusal(path, "set aside", error) from error
        return aside

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Make sure that `size` bytes can be written afterwards, before something that cannot be undone for free."""
        path = self.path / _RESERVE
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise _refusal(self.path, "write", error) from error
        try:
            yield
        finally:
            self.remove(_RESERVE)

    def files(self) -> frozenset[str]:
        """The names of the files here that agentd made, damaged maps included. Raises StateError."""
        try:
            names = {path.name for path in self.path.iterdir()}
        except OSError as error:
            raise _refusal(self.path, "read", error) from error
        return frozenset(name for name in names if name in _FILES or name.startswith(f"{NETMAP}.damaged-"))

    def clear(self, *, directory: bool, keep: frozenset[str] = frozenset()) -> list[Path]:
        """Remove what agentd made here but `keep`, and with `directory` the directory, if it is then empty.

        Returns what was removed. Raises StateError.
        """
        removed = []
        # The lock goes last: until then, no other agentd starts here. node.json goes first: without it, no mesh.
        for name in sorted(self.files() - keep, key=lambda name: (name == _LOCK, name != NODE, name)):
            self.remove(name)
            removed.append(self.path / name)
        if directory:
            # systemd's StateDirectory= and a read-only parent keep the empty directory; that is no failure.
            with suppress(OSError):
                self.path.rmdir()
                removed.append(self.path)
        return removed

    def node(self) -> NodeFile | None:
        """Which node this is; None when the host has not joined. Raises StateError when the file is damaged."""
        content = self.read(NODE)
        if content is None:
            return None
        try:
            return NodeFile.model_validate_json(unseal_json(content))
        except ValidationError as error:
            raise _damaged(self.path / NODE, error.errors()[0]["msg"]) from error
        except BrokenSealError as error:
            raise _damaged(self.path / NODE, str(error)) from error

    def write_node(self, node: NodeFile) -> None:
        """From now on this host is this node. Raises StateError."""
        self.write(NODE, seal_json(node.model_dump_json().encode()))

    def controllers(self) -> tuple[str, ...]:
        """The mesh's controllers as they were last told; none when they never were, or the file is damaged: then the
        one that the host joined at tells again. Raises StateError."""
        content = self.read(CONTROLLERS)
        try:
            return () if content is None else Controllers.model_validate_json(unseal_json(content)).urls
        except (ValidationError, BrokenSealError):
            log.warning("%s is damaged: this host knows one controller until it is told again", self.path / CONTROLLERS)
            return ()

    def write_controllers(self, controllers: Controllers) -> None:
        """These are the mesh's controllers now. Raises StateError."""
        self.write(CONTROLLERS, seal_json(controllers.model_dump_json().encode()))

    def note_time(self) -> None:
        """Remember the time of the clock that can be set, for `last_time`; not after leaving. Raises StateError.

        Not synced: it is noted often, and a power cut may cost the last half minute.
        """
        path = self.path / CLOCK
        if not (self.path / NODE).exists():
            return
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                self._own(descriptor)
                os.utime(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _refusal(path, "write", error) from error

    def last_time(self) -> float | None:
        """What `note_time` remembers (seconds since the epoch); None when it never did. Raises StateError."""
        path = self.path / CLOCK
        try:
            return path.stat().st_mtime
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refusal(path, "read", error) from error

    def wireguard_key(self) -> WireguardKey | None:
        """The tunnel's key, None when it was not made yet. Raises StateError when it is damaged."""
        content = self.read(WIREGUARD_KEY)
        try:
            return None if content is None else WireguardKey.parse(content)
        except KeyDamagedError as error:
            raise _damaged(self.path / WIREGUARD_KEY, str(error)) from error

    def identity_key(self) -> IdentityKey | None:
        """The node's key, None when it was not made yet. Raises StateError when it is damaged."""
        content = self.read(IDENTITY_KEY)
        try:
            return None if content is None else IdentityKey.parse(content)
        except KeyDamagedError as error:
            raise _damaged(self.path / IDENTITY_KEY, str(error)) from error

    def certificate(self) -> x509.Certificate | None:
        """The node's certificate, None when there is none. Raises StateError when it is damaged."""
        content = self.read(CERTIFICATE)
        try:
            return None if content is None else x509.load_pem_x509_certificate(content)
        except ValueError as error:
            raise _damaged(self.path / CERTIFICATE, "not a PEM certificate") from error

    def ca(self) -> str | None:
        """The certificate that the controller's is checked against (PEM), None when there is none.

        Raises StateError when it is damaged.
        """
        content = self.read(CA)
        try:
            return None if content is None else x509.load_pem_x509_certificate(content).public_bytes(_PEM).decode()
        except ValueError as error:
            raise _damaged(self.path / CA, "not a PEM certificate") from error

    def _own(self, descriptor: int) -> None:
        # `agentd join` is run by root, the daemon by the user that owns the directory: both must be able to read.
        owner, current = self.path.stat(), os.fstat(descriptor)
        if os.geteuid() == 0 and (owner.st_uid, owner.st_gid) != (current.st_uid, current.st_gid):
            os.fchown(descriptor, owner.st_uid, owner.st_gid)

    def _sync(self) -> None:
        # A rename is durable once its directory is (fsync(2), NOTES).
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _damaged(path: Path, reason: str) -> StateError:
    return StateError(
        f"{path} is damaged ({reason}): restore it from a backup, or run `agentd leave --force` and join again"
    )


def _refusal(path: Path, verb: str, error: OSError) -> StateError:
    remedies = {
        errno.EROFS: "the file system is read-only: remount it, or give another --state-dir",
        errno.ENOSPC: "the disk is full: free some space and try again",
        errno.EDQUOT: "the disk quota is used up: free some space and try again",
        errno.EACCES: "permission denied: run it as root or as the directory's owner",
        errno.EPERM: "permission denied: run it as root or as the directory's owner",
        errno.ENOENT: "the directory above it does not exist: make it first",
        errno.ENOTDIR: "a part of the path is not a directory: give another --state-dir",
        errno.ELOOP: "it is a symbolic link: remove it",
    }
    reason = remedies.get(error.errno or 0, f"{error.strerror}: check the directory")
    return StateError(f"cannot {verb} {path}: {reason}")
