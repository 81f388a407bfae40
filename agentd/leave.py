"""Leaving the mesh: tell the controller, remove what was made in the kernel, remove the files. Nothing stays.

The same steps whether the daemon runs them for `agentd leave` or the command does because no daemon runs.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from .controllers import Controllers
from .errors import ControllerError, StateError
from .https import Controller, trusting, with_client_certificate
from .local_api import Left
from .operations import Operation
from .state import CA, CERTIFICATE, IDENTITY_KEY, NodeFile, StateDir

__all__ = ["leave", "tell_controller"]

log = logging.getLogger("agentd.leave")

_GONE = "urn:wardmesh:problem:node-removed"


class Removable(Protocol):
    """The part of the reconciler that is needed here."""

    async def remove(self) -> list[Operation]:
        """Remove link, addresses, routes, peers and table."""


async def leave(
    state: StateDir, kernel: Removable, remove_more: Callable[[], Awaitable[list[str]]], *, force: bool
) -> Left:
    """Leave. Raises AgentError, with nothing removed, when the controller cannot be told and `force` is False.

    `remove_more` removes what others made for the mesh, and returns what that was.
    """
    told = await asyncio.to_thread(_tell, state, force=force)
    operations = await kernel.remove()
    more = await remove_more()
    files = await asyncio.to_thread(state.clear, directory=True)
    return Left(told=told, done=(*map(str, operations), *more, *(f"remove {path}" for path in files)))


def _tell(state: StateDir, *, force: bool) -> bool:
    try:
        node = state.node()
        if node is not None:
            tell_controller(state, node)
    except (ControllerError, StateError) as error:
        if not force:
            raise ControllerError(
                f"the controller was not told, so nothing was removed: {error}; "
                "`agentd leave --force` removes everything here and leaves the node on the controller's list"
            ) from error
        log.warning("leaving although the controller was not told: %s", error)
        return False
    return node is not None


def tell_controller(state: StateDir, node: NodeFile) -> None:
    """Take this node off the controller's list. Raises ControllerError, StateError."""
    ca, certificate, key = (state.read(name) for name in (CA, CERTIFICATE, IDENTITY_KEY))
    if ca is None or certificate is None or key is None:
        raise StateError(f"{state.path} has lost the node's identity")
    context = with_client_certificate(trusting(None if node.trust == "system" else ca.decode()), certificate, key)
    controllers = Controllers(node.node_id, node.url, state.controllers()).known
    for at, url in enumerate(controllers, start=1):
        try:
            Controller(url, context).delete("/api/v1/nodes/self")
        except ControllerError as error:
            if error.kind == _GONE:
                return
            if error.final or at == len(controllers):
                raise
        else:
            return
