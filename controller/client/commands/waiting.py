"""Waiting until hosts have in force what was changed. Polls; the controller knows what each kernel has."""

import time
from typing import Final

from controller.client.errors import ClientError
from controller.client.output import plain
from controller.client.rest import RestClient
from controller.wire.rest import Node, Problem

__all__ = ["wait_for_hosts"]

_POLL: Final = 0.3  # seconds


def wait_for_hosts(controller: RestClient, patience: float) -> None:
    """Return when no host is behind. Raises ClientError that lists those which are, after `patience` seconds."""
    deadline = time.monotonic() + patience
    while controller.status().behind:
        if time.monotonic() >= deadline:
            behind = [node for node in controller.nodes() if node.behind]
            if behind:
                raise ClientError(_late(behind, patience))
        time.sleep(_POLL)


def _late(behind: list[Node], patience: float) -> Problem:
    return Problem(
        type="urn:wardmesh:problem:client:hosts-behind",
        title="Not every host has it in force",
        status=0,
        detail=f"after {patience:g} s, {len(behind)} hosts that are online still enforce what they had before; the "
        "change stays made. `agentd status` on such a host says why",
        errors=tuple({"field": node.name, "message": _state(node)} for node in behind),
    )


def _state(node: Node) -> str:
    had = "nothing in force yet" if node.in_force is None else f"revision {node.in_force} in force"
    return f"{had}; its error: {plain(node.error)}" if node.error else had
