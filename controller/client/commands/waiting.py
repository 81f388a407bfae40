"""Waiting until hosts have in force what was changed. Polls; the controller knows what each kernel has."""

import time
from typing import Final

from controller.client.errors import ClientError
from controller.client.output import lasting, note, plain
from controller.client.rest import RestClient
from controller.wire.rest import Node, Problem

__all__ = ["wait_for_hosts"]

_POLL: Final = 0.3  # seconds
_NAMED: Final = 10  # hosts


def wait_for_hosts(controller: RestClient, patience: float, *, quiet: bool) -> None:
    """Return when no host is behind, and tell who has it unless `quiet`.

    Raises ClientError that lists those which are behind after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while controller.status().behind:
        if time.monotonic() >= deadline:
            behind = [node for node in controller.nodes() if node.behind]
            if behind:
                raise ClientError(_late(behind, patience))
        time.sleep(_POLL)
    if not quiet:
        note(_who_has_it(controller))


def _who_has_it(controller: RestClient) -> str:
    away = [node.name for node in controller.nodes(state="active", kind="agent") if not node.online]
    if not away:
        return "Every host has it in force."
    more = f" and {len(away) - _NAMED} more" if len(away) > _NAMED else ""
    return (
        "Every host that is online has it in force. Those that are away get it when they come back: "
        f"{', '.join(away[:_NAMED])}{more}."
    )


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
    late = f", behind for {lasting(node.lag)}" if node.lag is not None else ""
    return f"{had}{late}; its error: {plain(node.error)}" if node.error else f"{had}{late}"
