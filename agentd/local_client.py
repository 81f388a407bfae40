"""Asking the daemon of this host: one request, one answer, over its Unix socket; the answer may carry a socket."""

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError

from controller.wire.base import Message

from .errors import AgentError
from .gateway_messages import Listening, ListenRequest
from .local_api import Failure, Request, answer_type

__all__ = ["NotRunningError", "ask", "listening_socket"]

M = TypeVar("M", bound=Message)
_DESCRIPTOR: Final = struct.Struct("i")  # of SCM_RIGHTS (unix(7))


class NotRunningError(AgentError):
    """No daemon answers at the socket."""


def ask(path: Path, request: Request, answer: type[M], *, patience: float = 30) -> M:
    """Send the request, return the answer. Raises AgentError with the daemon's sentence, or NotRunningError."""

    def read(connection: socket.socket) -> bytes:
        with connection.makefile("rb") as lines:
            return lines.readline()

    return _understood(path, _exchange(path, request, read, patience), answer)


def listening_socket(path: Path, request: ListenRequest, *, patience: float = 10) -> socket.socket:
    """The socket that the daemon opened for us, which the caller closes. Raises AgentError, NotRunningError."""
    received: list[int] = []

    def read(connection: socket.socket) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            # Not socket.recv_fds, which drops its flags in Python 3.11: the descriptor must not reach what we start.
            part, extra, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(_DESCRIPTOR.size), socket.MSG_CMSG_CLOEXEC)
            received.extend(
                descriptor
                for level, kind, data in extra
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
                for (descriptor,) in _DESCRIPTOR.iter_unpack(data)
            )
            if not part:
                break
            line += part
        return line

    try:
        _understood(path, _exchange(path, request, read, patience), Listening)
        if not received:
            raise AgentError(f"agentd sent no socket for {request.address}: restart it")
        made = socket.socket(fileno=received.pop())
    finally:
        for descriptor in received:
            socket.close(descriptor)
    made.setblocking(False)
    return made


def _exchange(path: Path, request: Request, read: Callable[[socket.socket], bytes], patience: float) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(patience)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunningError(
                f"agentd is not running (nobody answers at {path}): start it with `agentd run`"
            ) from None
        except PermissionError:
            raise AgentError(
                f"no permission to open {path}: run it with sudo, or join the group that owns it"
            ) from None
        except OSError as error:
            raise AgentError(f"cannot open {path}: {error.strerror}") from error
        try:
            connection.sendall(request.model_dump_json().encode() + b"\n")
            return read(connection)
        except TimeoutError:
            raise AgentError(f"agentd did not answer at {path} within {patience:.0f} s: look at its log") from None
        except OSError as error:
            raise AgentError(f"agentd broke the connection at {path} ({error.strerror}): look at its log") from error


def _understood(path: Path, line: bytes, answer: type[M]) -> M:
    try:
        parsed = answer_type.validate_json(line)
    except ValidationError as error:
        raise AgentError(f"what answers at {path} is not this version of agentd: restart it") from error
    if isinstance(parsed, Failure):
        raise AgentError(parsed.error)
    if not isinstance(parsed, answer):
        raise AgentError(f"what answers at {path} is not this version of agentd: restart it")
    return parsed
