"""Sockets that listen on exactly one address, also before the host has it, and never on all of them."""

import ipaddress
import socket
from contextlib import ExitStack
from typing import Final

from ..errors import AgentError

__all__ = ["listening"]

# linux/in6.h (4.15); the socket module does not name it. IP_FREEBIND (ip(7)) is for IPv4 alone.
_IPV6_FREEBIND: Final = 78
_IP_FREEBIND: Final = 15
_BACKLOG: Final = 1024


def listening(address: str, port: int, *, shared: bool) -> socket.socket:
    """Bind and listen. `shared`: with other processes of ours (SO_REUSEPORT). Raises AgentError.

    The address need not be there yet: a service's address moves between hosts while the gateway runs.
    """
    parsed = ipaddress.ip_address(address)
    if parsed.is_unspecified:
        raise AgentError(f"a service must not listen on every address ({address}): give it one of its own")
    family = socket.AF_INET6 if parsed.version == 6 else socket.AF_INET
    with ExitStack() as undo:
        try:
            made = undo.enter_context(
                socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            )
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if parsed.version == 6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            else:
                made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            made.bind((address, port))
            made.listen(_BACKLOG)
        except OSError as error:
            remedy = "allow it with `sysctl net.ipv4.ip_unprivileged_port_start`, or give the service a port above 1023"
            hint = f": {remedy}" if isinstance(error, PermissionError) else ""
            raise AgentError(f"cannot listen at {address} port {port} ({error.strerror}){hint}") from error
        undo.pop_all()
        return made
