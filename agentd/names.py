"""The mesh's names on this host: services that it may call, and its peers; and the hosts file's block of them.

The block stands between two markers that name the link; no other line is ever touched. Pure but for `HostsFile`, and
without knowledge of who may call what: the map has only names that this host may use.
"""

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from controller.wire.base import Address
from controller.wire.netmap import Netmap, Peer, SelfNode

from .dns import Zone
from .errors import AgentError

__all__ = ["HostsFile", "NamesError", "entries", "few", "merged", "parse_entries", "written", "zone"]

# glibc reads the file from its beginning for every name (nss_files): a longer block would slow down every look-up.
_MOST: Final = 2000
# Where the file cannot be replaced: it is a mount point (as in containers), or we may write it but not its directory.
_NOT_REPLACEABLE: Final = frozenset({errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS})
_NAME: Final = re.compile(r"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})+")

Entry = tuple[Address, str]


class NamesError(AgentError):
    """The hosts file cannot be read or written, or its block is damaged; names the file and the remedy."""


def entries(netmap: Netmap) -> tuple[Entry, ...]:
    """Addresses and full names: first of services, then of this node and its peers."""
    services = [(address, name) for name, addresses in sorted(netmap.names.items()) for address in addresses]
    nodes: tuple[SelfNode | Peer, ...] = (netmap.node, *sorted(netmap.peers.values(), key=lambda peer: peer.name))
    others = [(address, node.name) for node in nodes if node.name not in netmap.names for address in node.addresses]
    return tuple((address, f"{name}.{netmap.mesh.domain}") for address, name in (*services, *others))


def few(listed: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """As many as a hosts file bears."""
    return listed[:_MOST]


def zone(netmap: Netmap) -> Zone:
    """The same names for the DNS responder, all of them."""
    names: dict[str, tuple[Address, ...]] = {}
    for address, name in entries(netmap):
        names[name] = (*names.get(name, ()), address)
    return Zone(netmap.mesh.domain, names, netmap.revision)


def written(listed: tuple[Entry, ...]) -> str:
    """The entries as lines of a hosts file (hosts(5))."""
    return "".join(f"{address} {name}\n" for address, name in listed)


def parse_entries(text: str) -> tuple[Entry, ...]:
    """Read what `written` wrote. Raises NamesError: whoever wrote it must not get another line into the hosts file."""
    found = []
    for line in text.splitlines():
        address, _, name = line.partition(" ")
        if not re.fullmatch(r"[0-9a-f.:]{2,45}", address) or not _NAME.fullmatch(name):
            raise NamesError(f"{line!r} is not an address and a full name: let agentd write it again")
        found.append((address, name))
    return tuple(found)


def merged(text: str, link: str, listed: tuple[Entry, ...]) -> str:
    """The hosts file with these entries in the block of `link`, or without the block. Raises NamesError."""
    begin, end = f"# BEGIN wardmesh {link}", f"# END wardmesh {link}"
    lines = text.splitlines(keepends=True)
    begins = [number for number, line in enumerate(lines) if _is_marker(line, begin)]
    ends = [number for number, line in enumerate(lines) if _is_marker(line, end)]
    if (len(begins), len(ends)) not in {(0, 0), (1, 1)} or begins > ends:
        raise NamesError(f"the lines {begin!r} and {end!r} do not match: remove what is between them, and both")
    block = [f"{begin}: agentd keeps these lines\n", written(listed), f"{end}\n"] if listed else []
    if begins:
        lines[begins[0] : ends[0] + 1] = block
    elif block:
        if lines and not lines[-1].endswith("\n"):
            block.insert(0, "\n")
        lines += block
    return "".join(lines)


def _is_marker(line: str, marker: str) -> bool:
    stripped = line.strip()
    return stripped == marker or stripped.startswith(f"{marker}:")


class HostsFile:
    """The block of one link in the file at `path`."""

    def __init__(self, path: Path, link: str) -> None:
        self.path = path
        self._link = link

    def put(self, listed: tuple[Entry, ...]) -> bool:
        """Make the block say this; no entries: no block. True when the file was another one. Raises NamesError."""
        try:
            path = self.path.resolve()
            before = path.read_bytes().decode(errors="surrogateescape") if path.exists() else ""
            after = merged(before, self._link, listed)
            if after == before:
                return False
            _write(path, after.encode(errors="surrogateescape"))
        except OSError as error:
            raise NamesError(
                f"the mesh's names cannot be written to {self.path} ({error.strerror}): start wardmesh-names.path, "
                "which does it as root, or set hosts_file = false"
            ) from error
        except NamesError as error:
            raise NamesError(f"{self.path}: {error}") from error
        return True


def _write(path: Path, content: bytes) -> None:
    """Replace the file as a whole, with its mode and owner; in place where it cannot be replaced."""
    found = path.stat() if path.exists() else None
    temporary = path.with_name(f".{path.name}.wardmesh")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, stat.S_IMODE(found.st_mode) if found else 0o644)
            if found is not None:
                os.fchown(descriptor, found.st_uid, found.st_gid)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if error.errno not in _NOT_REPLACEABLE or found is None:
            raise
        with path.open("r+b") as file:
            file.write(content)
            file.truncate()
