"""One agentd per tunnel: two daemons that own the same link or nftables table would undo each other's work for ever.

An abstract Unix socket name belongs to one network namespace, as links and tables do, and vanishes with its process
(unix(7)); so it is a lock of exactly the right extent, which no crash leaves behind.
"""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from .errors import AgentError

__all__ = ["sole_owner"]


@contextmanager
def sole_owner(*, link: str, table: str) -> Iterator[None]:
    """Hold the link's and the table's names in this network namespace. Raises AgentError when another agentd does."""
    with ExitStack() as held:
        for kind, name in (("link", link), ("table", table)):
            lock = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC))
            try:
                lock.bind(f"\0wardmesh/agentd/{kind}/{name}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise AgentError(f"cannot reserve the {kind} {name}: {error.strerror}") from error
                raise AgentError(
                    f"another agentd on this host owns the {kind} {name}: stop it, or set another `link` and `table` "
                    "in the configuration file"
                ) from None
        yield
