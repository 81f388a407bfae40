"""Asking the daemon of this host: one request, one answer, over its Unix socket."""

import socket
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from controller.wire.base import Message

from .errors import AgentError
from .local_api import Failure, Request, answer_type

__all__ = ["NotRunningError", "ask"]

M = TypeVar("M", bound=Message)


class NotRunningError(AgentError):
    """No daemon answers at the socket."""


def ask(path: Path, request: Request, answer: type[M], *, patience: float = 30) -> M:
    """Send the request, return the answer. Raises AgentError with the daemon's sentence, or NotRunningError."""
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
            with connection.makefile("rb") as lines:
                line = lines.readline()
        except TimeoutError:
            raise AgentError(f"agentd did not answer at {path} within {patience:.0f} s: look at its log") from None
        except OSError as error:
            raise AgentError(f"agentd broke the connection at {path} ({error.strerror}): look at its log") from error
    try:
        parsed = answer_type.validate_json(line)
    except ValidationError as error:
        raise AgentError(f"what answers at {path} is not this version of agentd: restart it") from error
    if isinstance(parsed, Failure):
        raise AgentError(parsed.error)
    if not isinstance(parsed, answer):
        raise AgentError(f"what answers at {path} is not this version of agentd: restart it")
    return parsed
