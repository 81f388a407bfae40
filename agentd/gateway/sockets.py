"""Sockets that listen on exactly one address, also before the host has it, and never on all of them."""

import ctypes
import ipaddress
import socket
import struct
from contextlib import ExitStack
from typing import Final

from ..errors import AgentError

__all__ = ["listening", "process_of"]

# linux/in6.h (4.15); the socket module does not name it. IP_FREEBIND (ip(7)) is for IPv4 alone.
_IPV6_FREEBIND: Final = 78
_IP_FREEBIND: Final = 15
_BACKLOG: Final = 1024
_SO_ATTACH_REUSEPORT_CBPF: Final = 51  # asm-generic/socket.h, Linux 4.5
# linux/bpf_common.h and linux/filter.h
_LOAD_BYTE: Final = 0x30  # BPF_LD | BPF_B | BPF_ABS
_MODULO: Final = 0x94  # BPF_ALU | BPF_MOD | BPF_K
_RETURN: Final = 0x16  # BPF_RET | BPF_A
_NETWORK_HEADER: Final = 0x1_0000_0000 - 0x100000  # SKF_NET_OFF as an unsigned word
_SOURCE: Final = {socket.AF_INET: 15, socket.AF_INET6: 23}  # the last byte of the source address


def listening(address: str, port: int, *, processes: int) -> socket.socket:
    """Bind and listen, together with the other ones of `processes` (SO_REUSEPORT). Raises AgentError.

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
            if processes > 1:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if parsed.version == 6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            else:
                made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            made.bind((address, port))
            made.listen(_BACKLOG)
            if processes > 1:
                _keep_callers_together(made, processes)  # of the group of sockets, which exists from here on
        except OSError as error:
            remedy = "allow it with `sysctl net.ipv4.ip_unprivileged_port_start`, or give the service a port above 1023"
            hint = f": {remedy}" if isinstance(error, PermissionError) else ""
            raise AgentError(f"cannot listen at {address} port {port} ({error.strerror}){hint}") from error
        undo.pop_all()
        return made


def process_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address, processes: int) -> int:
    """Which of `processes` has this caller: by the last byte, which a node's addresses of both families share.

    (Both end with the node's number; of a mesh whose IPv4 prefix is longer than /24, with a part of it.)
    """
    return address.packed[-1] % processes


def _keep_callers_together(listener: socket.socket, processes: int) -> None:
    """Let the kernel choose the process by the caller's address instead of by its connection.

    Limits belong to callers: spread over processes, a caller that opens many connections would have each limit many
    times. The same rule as `process_of`, as far as the processes listened in their order: the kernel counts them by
    that, and puts the last one where one ends (net/core/sock_reuseport.c). `siblings` sets right what it gets wrong.
    """
    instructions = (
        (_LOAD_BYTE, _NETWORK_HEADER + _SOURCE[listener.family]),
        (_MODULO, processes),
        (_RETURN, 0),
    )
    program = b"".join(struct.pack("=HBBI", code, 0, 0, operand) for code, operand in instructions)
    held = ctypes.create_string_buffer(program)
    fprog = struct.pack("@HP", len(instructions), ctypes.addressof(held))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, fprog)
