"""What a command of `agentd` asks this host's daemon; and where none runs, what else keeps it from running."""

from typing import TypeVar

from controller.wire.base import Message

from . import late
from .config import Config
from .errors import AgentError
from .local_api import Request
from .local_client import NotRunningError, ask

__all__ = ["ask_daemon"]

M = TypeVar("M", bound=Message)


def ask_daemon(config: Config, request: Request, answer: type[M]) -> M:
    """Send the request, return the answer. Raises AgentError with the daemon's sentence, or NotRunningError."""
    try:
        return ask(config.socket, request, answer)
    except NotRunningError as error:
        raise NotRunningError(f"{error}{_joined(config)}") from None


def _joined(config: Config) -> str:
    """What the state directory says, for who may read it."""
    try:
        node = late.state.StateDir(config.state_dir).node()
    except AgentError:
        return ""
    if node is None:
        return "; this host has not joined a mesh, so `agentd join` comes first"
    return f"; this host is {node.name!r} in the mesh {node.mesh.name!r}"
