"""Turning a host into a node: one join string in, a complete state directory out, or nothing and one sentence why.

Order matters. What can fail without cost comes first (name, disk, clock, CA); then the enrolment key is redeemed; what
fails after that is undone at the controller. `node.json` is written last: until then, the host has not joined.
"""

import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ssl import SSLContext

from controller.wire.base import check_name
from controller.wire.enrol import EnrolRequest, EnrolResponse, JoinString

from .clock import describe_clocks, skew
from .config import Config
from .errors import AgentError, ControllerError, StateError
from .host import agent_version, endpoints, overlap
from .https import Controller, fetch_ca, retrying, trusting, with_client_certificate
from .keys import IdentityKey, WireguardKey
from .model import HostNetwork, LocalAddress
from .state import CA, CERTIFICATE, IDENTITY_KEY, NODE, WIREGUARD_KEY, NodeFile, StateDir

__all__ = ["HostFacts", "Joined", "choose_name", "join"]

# More than certificate, CA and node.json ever take.
_ROOM = 64 * 1024


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What joining needs to know of the host."""

    addresses: tuple[LocalAddress, ...]
    networks: tuple[HostNetwork, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """`new` is False when the host was in this mesh already. `state` is None then, or `pending`, or `active`."""

    node: NodeFile
    new: bool
    state: str | None = None


@dataclass(frozen=True, slots=True)
class _Keys:
    wireguard: WireguardKey
    identity: IdentityKey


def choose_name(wanted: str | None, hostname: str | None = None) -> str:
    """The node's name: as wanted, else the first label of the host's name in lower case. Raises AgentError."""
    name = wanted or (hostname if hostname is not None else socket.gethostname()).split(".", 1)[0].lower()
    try:
        return check_name(name)
    except ValueError as error:
        origin = "--name" if wanted else "this host's name"
        raise AgentError(f"{origin}: {error}; pass a good one with --name, for example --name db-1") from error


def join(state: StateDir, config: Config, text: str, facts: HostFacts, *, say: Callable[[str], None]) -> Joined:
    """Enrol this host. `say` takes lines of progress. Raises AgentError, JoinStringError.

    Running it again after it was interrupted uses the same keys, by which the controller recognises the host and
    answers as it did, or would have done, the first time.
    """
    target = JoinString.decode(text)
    present = _joined_already(state, target)
    if present is not None:
        return Joined(present, new=False)
    name = choose_name(config.name)
    made, before = state.create(), state.files()
    try:
        with state.lock(), state.reserve(_ROOM):
            keys = _keys(state)
            request = EnrolRequest(
                key=target.key,
                name=name,
                public_key=keys.wireguard.public,
                csr=keys.identity.request(name),
                addresses=config.addresses,
                endpoints=endpoints(config, facts.addresses, None),
                agent_version=agent_version(),
            )
            ca, answer = _enrol(target, request, say)
            try:
                return _settle(state, target, ca, answer, facts.networks)
            except AgentError as error:
                undone = _undo(target, ca, answer, keys)
                raise AgentError(f"{error} ({undone})") from error
    except AgentError as error:
        # A request whose answer was lost may have been done: then the keys are what proves that it was ours.
        if not isinstance(error, ControllerError) or error.final:
            state.clear(directory=made, keep=before)
        raise


def _joined_already(state: StateDir, target: JoinString) -> NodeFile | None:
    node = state.node()
    if node is None or (node.ca == target.ca != "system") or (node.ca == target.ca and node.url == target.url):
        return node
    raise AgentError(
        f"this host is already {node.name!r} in the mesh {node.mesh.name!r} of {node.url}: "
        "run `agentd leave` first, or give another --state-dir"
    )


def _keys(state: StateDir) -> _Keys:
    """The keys of an interrupted join, or new ones."""
    wireguard, identity = state.wireguard_key(), state.identity_key()
    if wireguard is None:
        wireguard = WireguardKey.generate()
        state.write(WIREGUARD_KEY, wireguard.text)
    if identity is None:
        identity = IdentityKey.generate()
        state.write(IDENTITY_KEY, identity.text)
    return _Keys(wireguard, identity)


def _enrol(target: JoinString, request: EnrolRequest, say: Callable[[str], None]) -> tuple[str | None, EnrolResponse]:
    """Redeem the enrolment key; returns the trust root that the controller was verified with, and its answer."""

    def on_retry(error: ControllerError) -> None:
        say(f"{error}; trying again")

    ca, clock = retrying(lambda: _trust_root(target), on_retry=on_retry)
    if skew(datetime.now(UTC), clock):
        say(f"warning: {describe_clocks(datetime.now(UTC), clock)}")
    controller = Controller(target.url, trusting(ca), clock)
    answer = retrying(lambda: controller.post("/api/v1/enrol", request, EnrolResponse), on_retry=on_retry)
    return ca, answer


def _trust_root(target: JoinString) -> tuple[str | None, datetime | None]:
    return (None, None) if target.ca == "system" else fetch_ca(target.url, target.ca)


def _settle(
    state: StateDir, target: JoinString, ca: str | None, answer: EnrolResponse, networks: Iterable[HostNetwork]
) -> Joined:
    if clash := overlap(answer.mesh, networks):
        raise clash
    node = NodeFile(
        url=target.url,
        trust="system" if ca is None else "mesh" if ca.strip() == answer.ca.strip() else "pinned",
        ca=target.ca,
        node_id=answer.node_id,
        name=answer.name,
        mesh=answer.mesh,
        addresses=answer.addresses,
    )
    try:
        state.write(CA, (ca or answer.ca).encode())
        state.write(CERTIFICATE, answer.certificate.encode())
        state.write_node(node)
    except StateError:
        # A removal that fails must not hide why writing failed.
        with suppress(StateError):
            for name in (NODE, CERTIFICATE, CA):
                state.remove(name)
        raise
    return Joined(node, new=True, state=answer.state)


def _undo(target: JoinString, ca: str | None, answer: EnrolResponse, keys: _Keys) -> str:
    """Take the node off the controller's list again; returns how that went, for the end of the sentence."""
    try:
        context: SSLContext = with_client_certificate(trusting(ca), answer.certificate.encode(), keys.identity.text)
        Controller(target.url, context).delete("/api/v1/nodes/self")
    except (ControllerError, OSError) as error:
        return f"the controller still lists the node {answer.name!r}, remove it there: {error}"
    return "the enrolment was undone; its key may be used up, then make a new one"
