"""The REST API as one class: a method a request, wire models in and out.

Knows neither the terminal (it prints nothing and asks nothing) nor how a request is sent. Synchronous; one instance is
one connection pool.
"""

import re
import ssl
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, TypeVar

from pydantic import RootModel

from controller.wire.base import check_name
from controller.wire.call_records import CallEntry
from controller.wire.denials import DenialList, HostDenial
from controller.wire.grants import GrantCreate, GrantPatch, TemporaryGrant
from controller.wire.netcheck import HostNetcheck
from controller.wire.paths import HostPath, PathList
from controller.wire.relay_use import MeshRelay, RelayDetail
from controller.wire.rest import (
    AdminToken,
    AdminTokenCreate,
    AdminTokenCreated,
    AuditEntry,
    EnrolmentKey,
    EnrolmentKeyCreate,
    EnrolmentKeyCreated,
    Explanation,
    Health,
    MeshStatus,
    Node,
    NodePatch,
    Page,
    PeerConfig,
    PolicyCounters,
    PolicyDifference,
    PolicyDocument,
    PolicyReport,
    PolicyWrite,
    StaticPeerCreate,
)
from controller.wire.services import CallExplanation, CallQuestion, MeshService, ServiceMove

from .errors import NotFoundError, RefusedError
from .transport import Query, Tagged, Transport, read, read_tagged

__all__ = ["RestClient", "Tagged"]

_JsonObject = RootModel[dict[str, Any]]

_PAGE_OF_POLICIES: Final = 20  # which are large
_EDIT_ATTEMPTS: Final = 5
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RestClient:
    """A controller's REST API.

    `url` is `https://HOST[:PORT]`, `tls` decides which controller is believed. Every method raises ClientError:
    RefusedError with the controller's problem, UnreachableError, UntrustedError, or BadAnswerError.
    """

    def __init__(self, url: str, token: str | None, tls: ssl.SSLContext) -> None:
        self.url = url
        self._http = Transport(url, token, tls)

    def __enter__(self) -> "RestClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # Health and status

    def health(self) -> Health:
        """GET /health; needs no token."""
        return read(Health, self._http.send("GET", "health"))

    def status(self) -> MeshStatus:
        """GET /status."""
        return read(MeshStatus, self._http.send("GET", "status"))

    # Nodes

    def nodes(
        self, *, name: str | None = None, tag: str | None = None, state: str | None = None, kind: str | None = None
    ) -> Iterator[Node]:
        """GET /nodes, all pages."""
        return self._http.pages(Page[Node], "nodes", {"name": name, "tag": tag, "state": state, "kind": kind})

    def node(self, node_id: str) -> Tagged[Node]:
        """GET /nodes/{id}."""
        return read_tagged(Node, self._http.send("GET", f"nodes/{_segment(node_id)}"))

    def find_node(self, reference: str) -> Tagged[Node]:
        """The node with this name or, when no node has it, with this id. Raises NotFoundError."""
        # What is not a label cannot be a name; the controller would call such a filter an error.
        named = next(self.nodes(name=reference), None) if _is_name(reference) else None
        try:
            return self.node(named.id if named else reference)
        except (RefusedError, NotFoundError) as error:
            if isinstance(error, RefusedError) and error.problem.status not in {404, 422}:
                raise
            raise NotFoundError(f"no node is named {reference!r} or has that id: see `wardmesh node list`") from error

    def edit_node(self, node_id: str, change: Callable[[Node], NodePatch | None]) -> Node:
        """PATCH /nodes/{id} with If-Match.

        `change` states the intent: it is asked again with the newer node when somebody else was faster, and answers
        None when nothing is left to do.
        """

        def attempt() -> Node:
            current = self.node(node_id)
            patch = change(current.value)
            if patch is None:
                return current.value
            body = patch.model_dump(mode="json", exclude_unset=True)
            answer = self._http.send("PATCH", f"nodes/{_segment(node_id)}", json=body, etag=current.etag)
            return read(Node, answer)

        return _again_when_stale(attempt)

    def delete_node(self, node_id: str) -> None:
        """DELETE /nodes/{id}."""

        def attempt() -> None:
            self._http.send("DELETE", f"nodes/{_segment(node_id)}", etag=self.node(node_id).etag)

        _again_when_stale(attempt)

    # Static peers

    def create_peer(self, peer: StaticPeerCreate) -> Node:
        """POST /static-peers."""
        return read(Node, self._http.post("static-peers", peer))

    def peer_config(self, node_id: str) -> PeerConfig:
        """GET /static-peers/{id}/config."""
        return read(PeerConfig, self._http.send("GET", f"static-peers/{_segment(node_id)}/config"))

    # Enrolment keys

    def create_enrolment_key(self, key: EnrolmentKeyCreate) -> EnrolmentKeyCreated:
        """POST /enrolment-keys. The join string is in this answer and never again."""
        return read(EnrolmentKeyCreated, self._http.post("enrolment-keys", key))

    def enrolment_keys(self) -> Iterator[EnrolmentKey]:
        """GET /enrolment-keys, all pages."""
        return self._http.pages(Page[EnrolmentKey], "enrolment-keys", {})

    def enrolment_key(self, key_id: str) -> EnrolmentKey:
        """GET /enrolment-keys/{id}."""
        return read(EnrolmentKey, self._http.send("GET", f"enrolment-keys/{_segment(key_id)}"))

    def revoke_enrolment_key(self, key_id: str) -> None:
        """DELETE /enrolment-keys/{id}."""
        self._http.send("DELETE", f"enrolment-keys/{_segment(key_id)}")

    # Policy

    def policy(self) -> Tagged[PolicyDocument]:
        """GET /policy."""
        return read_tagged(PolicyDocument, self._http.send("GET", "policy"))

    def put_policy(self, policy: PolicyWrite, etag: str) -> PolicyDocument:
        """PUT /policy with If-Match."""
        answer = self._http.send("PUT", "policy", json=policy.model_dump(mode="json"), etag=etag)
        return read(PolicyDocument, answer)

    def check_policy(self, policy: PolicyWrite) -> PolicyReport:
        """POST /policy/check; changes nothing."""
        return read(PolicyReport, self._http.post("policy/check", policy))

    def diff_policy(self, policy: PolicyWrite) -> PolicyDifference:
        """POST /policy/diff; changes nothing."""
        return read(PolicyDifference, self._http.post("policy/diff", policy))

    def policy_schema(self) -> dict[str, Any]:
        """GET /policy/schema: JSON Schema, as this controller reads documents."""
        return read(_JsonObject, self._http.send("GET", "policy/schema")).root

    def policies(self) -> Iterator[PolicyDocument]:
        """GET /policy/history, newest first, page by page as they are consumed."""
        return self._http.pages(Page[PolicyDocument], "policy/history", {}, size=_PAGE_OF_POLICIES)

    def explain(self, source: str, destination: str, port: str) -> Explanation:
        """GET /policy/explain. Nodes by name or id; `port` is `tcp:443`, `udp:53` or `icmp`."""
        params = {"from": source, "to": destination, "port": port}
        return read(Explanation, self._http.send("GET", "policy/explain", params=params))

    def policy_counters(self, *, node: str | None = None) -> PolicyCounters:
        """GET /policy/counters. `node` by name or id; None for all that are online."""
        params = {"node": node} if node is not None else {}
        return read(PolicyCounters, self._http.send("GET", "policy/counters", params=params))

    def explain_call(self, question: CallQuestion) -> CallExplanation:
        """POST /policy/explain-call; changes nothing."""
        return read(CallExplanation, self._http.post("policy/explain-call", question))

    # Services

    def services(self) -> Iterator[MeshService]:
        """GET /services, all pages."""
        return self._http.pages(Page[MeshService], "services", {})

    def service(self, name: str) -> MeshService:
        """GET /services/{name}."""
        return read(MeshService, self._http.send("GET", f"services/{_segment(name)}"))

    def move_service(self, name: str, move: ServiceMove) -> MeshService:
        """POST /services/{name}/move."""
        return read(MeshService, self._http.post(f"services/{_segment(name)}/move", move))

    # Temporary grants

    def create_grant(self, grant: GrantCreate) -> TemporaryGrant:
        """POST /grants."""
        return read(TemporaryGrant, self._http.post("grants", grant))

    def grants(self, *, state: str | None = None) -> Iterator[TemporaryGrant]:
        """GET /grants, newest first, page by page as they are consumed. `state`: active or ended."""
        return self._http.pages(Page[TemporaryGrant], "grants", {"state": state})

    def grant(self, grant_id: str) -> Tagged[TemporaryGrant]:
        """GET /grants/{id}."""
        return read_tagged(TemporaryGrant, self._http.send("GET", f"grants/{_segment(grant_id)}"))

    def extend_grant(self, grant_id: str, patch: GrantPatch) -> TemporaryGrant:
        """PATCH /grants/{id} with If-Match."""

        def attempt() -> TemporaryGrant:
            body, etag = patch.model_dump(mode="json"), self.grant(grant_id).etag
            answer = self._http.send("PATCH", f"grants/{_segment(grant_id)}", json=body, etag=etag)
            return read(TemporaryGrant, answer)

        return _again_when_stale(attempt)

    def revoke_grant(self, grant_id: str) -> None:
        """DELETE /grants/{id}."""
        self._http.send("DELETE", f"grants/{_segment(grant_id)}")

    # Audit

    def audit(
        self, *, action: str | None = None, subject: str | None = None, actor: str | None = None
    ) -> Iterator[AuditEntry]:
        """GET /audit, newest first, page by page as they are consumed."""
        return self._http.pages(Page[AuditEntry], "audit", {"action": action, "subject": subject, "actor": actor})

    def calls(self, filters: Query) -> Iterator[CallEntry]:
        """GET /calls, newest first, page by page as they are consumed. `filters` are those of the request."""
        return self._http.pages(Page[CallEntry], "calls", filters)

    def calls_after(self, number: int, filters: Query) -> list[CallEntry]:
        """GET /calls: some of the records that came after record `number`, as they came; none when there are none."""
        return list(self._http.page(Page[CallEntry], "calls", {**filters, "after": str(number)}).items)

    def denials(self, *, node: str | None = None, limit: int = 500) -> tuple[HostDenial, ...]:
        """GET /denials: what hosts denied in the last hour, newest minute first. `node` is an id."""
        params = {"limit": str(limit)} | ({"node": node} if node is not None else {})
        return read(DenialList, self._http.send("GET", "denials", params=params)).items

    def paths(self, *, node: str | None = None, peer: str | None = None) -> tuple[HostPath, ...]:
        """GET /paths: how connected hosts reach their peers. `node` and `peer` are ids."""
        params = {"limit": "20000", "node": node, "peer": peer}
        return read(PathList, self._http.send("GET", "paths", params=params)).items

    def netchecks(self, *, node: str | None = None) -> Iterator[HostNetcheck]:
        """GET /netchecks: from where hosts are seen, all pages. `node` is an id."""
        return self._http.pages(Page[HostNetcheck], "netchecks", {"node": node})

    def relays(self) -> Iterator[MeshRelay]:
        """GET /relays, all pages."""
        return self._http.pages(Page[MeshRelay], "relays", {})

    def relay(self, reference: str) -> RelayDetail:
        """GET /relays/{name}, by name or id."""
        return read(RelayDetail, self._http.send("GET", f"relays/{_segment(reference)}"))

    # Admin tokens

    def create_token(self, token: AdminTokenCreate) -> AdminTokenCreated:
        """POST /tokens. The token is in this answer and never again."""
        return read(AdminTokenCreated, self._http.post("tokens", token))

    def tokens(self) -> Iterator[AdminToken]:
        """GET /tokens, all pages."""
        return self._http.pages(Page[AdminToken], "tokens", {})

    def revoke_token(self, token_id: str) -> None:
        """DELETE /tokens/{id}."""
        self._http.send("DELETE", f"tokens/{_segment(token_id)}")


R = TypeVar("R")


def _again_when_stale(attempt: Callable[[], R]) -> R:
    """Run a read-and-edit until no one else's edit falls between (412), a bounded number of times."""
    for _ in range(_EDIT_ATTEMPTS - 1):
        try:
            return attempt()
        except RefusedError as error:
            if error.problem.status != 412:
                raise
    return attempt()


def _segment(value: str) -> str:
    """One path segment, whatever a person typed: a slash or `..` must not reach another resource."""
    if not _ID.fullmatch(value):
        raise NotFoundError(f"nothing has the id {value!r}: ids are of letters, digits, '-' and '_'")
    return value


def _is_name(value: str) -> bool:
    try:
        check_name(value)
    except ValueError:
        return False
    return True
