"""The REST API as one class: a method a request, wire models in and out.

Knows HTTP, not the terminal: it prints nothing and asks nothing. Synchronous; one instance is one connection pool.
"""

import re
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

import httpx
from pydantic import BaseModel, RootModel, ValidationError

from controller.wire.base import check_name
from controller.wire.call_records import CallEntry
from controller.wire.denials import DenialList, HostDenial
from controller.wire.grants import GrantCreate, GrantPatch, TemporaryGrant
from controller.wire.paths import HostPath, PathList
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
    Problem,
    StaticPeerCreate,
)
from controller.wire.services import CallExplanation, CallQuestion, MeshService, ServiceMove

from .errors import BadAnswerError, NotFoundError, RefusedError, UnreachableError
from .trust import TIMEOUT, tls_problem, unreachable

__all__ = ["RestClient", "Tagged"]

_JsonObject = RootModel[dict[str, Any]]
M = TypeVar("M", bound=BaseModel)

_PAGE: Final = 500  # the API's largest page
_PAGE_OF_POLICIES: Final = 20  # which are large
_ATTEMPTS: Final = 3
_PAUSE: Final = 0.2  # seconds before the second attempt; doubles
_EDIT_ATTEMPTS: Final = 5
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Tagged(Generic[M]):
    """A resource and the ETag that an edit of it must name."""

    value: M
    etag: str


class RestClient:
    """A controller's REST API.

    `url` is `https://HOST[:PORT]`, `tls` decides which controller is believed. Every method raises ClientError:
    RefusedError with the controller's problem, UnreachableError, UntrustedError, or BadAnswerError.
    """

    def __init__(self, url: str, token: str | None, tls: ssl.SSLContext) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=f"{url}/api/v1/", headers=headers, verify=tls, timeout=TIMEOUT)

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
        return self._read(Health, self._send("GET", "health"))

    def status(self) -> MeshStatus:
        """GET /status."""
        return self._read(MeshStatus, self._send("GET", "status"))

    # Nodes

    def nodes(
        self, *, name: str | None = None, tag: str | None = None, state: str | None = None, kind: str | None = None
    ) -> Iterator[Node]:
        """GET /nodes, all pages."""
        return self._pages(Node, "nodes", {"name": name, "tag": tag, "state": state, "kind": kind})

    def node(self, node_id: str) -> Tagged[Node]:
        """GET /nodes/{id}."""
        return self._read_tagged(Node, self._send("GET", f"nodes/{_segment(node_id)}"))

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
            answer = self._send("PATCH", f"nodes/{_segment(node_id)}", json=body, etag=current.etag)
            return self._read(Node, answer)

        return _again_when_stale(attempt)

    def delete_node(self, node_id: str) -> None:
        """DELETE /nodes/{id}."""

        def attempt() -> None:
            self._send("DELETE", f"nodes/{_segment(node_id)}", etag=self.node(node_id).etag)

        _again_when_stale(attempt)

    # Static peers

    def create_peer(self, peer: StaticPeerCreate) -> Node:
        """POST /static-peers."""
        return self._read(Node, self._post("static-peers", peer))

    def peer_config(self, node_id: str) -> PeerConfig:
        """GET /static-peers/{id}/config."""
        return self._read(PeerConfig, self._send("GET", f"static-peers/{_segment(node_id)}/config"))

    # Enrolment keys

    def create_enrolment_key(self, key: EnrolmentKeyCreate) -> EnrolmentKeyCreated:
        """POST /enrolment-keys. The join string is in this answer and never again."""
        return self._read(EnrolmentKeyCreated, self._post("enrolment-keys", key))

    def enrolment_keys(self) -> Iterator[EnrolmentKey]:
        """GET /enrolment-keys, all pages."""
        return self._pages(EnrolmentKey, "enrolment-keys", {})

    def enrolment_key(self, key_id: str) -> EnrolmentKey:
        """GET /enrolment-keys/{id}."""
        return self._read(EnrolmentKey, self._send("GET", f"enrolment-keys/{_segment(key_id)}"))

    def revoke_enrolment_key(self, key_id: str) -> None:
        """DELETE /enrolment-keys/{id}."""
        self._send("DELETE", f"enrolment-keys/{_segment(key_id)}")

    # Policy

    def policy(self) -> Tagged[PolicyDocument]:
        """GET /policy."""
        return self._read_tagged(PolicyDocument, self._send("GET", "policy"))

    def put_policy(self, policy: PolicyWrite, etag: str) -> PolicyDocument:
        """PUT /policy with If-Match."""
        answer = self._send("PUT", "policy", json=policy.model_dump(mode="json"), etag=etag)
        return self._read(PolicyDocument, answer)

    def check_policy(self, policy: PolicyWrite) -> PolicyReport:
        """POST /policy/check; changes nothing."""
        return self._read(PolicyReport, self._post("policy/check", policy))

    def diff_policy(self, policy: PolicyWrite) -> PolicyDifference:
        """POST /policy/diff; changes nothing."""
        return self._read(PolicyDifference, self._post("policy/diff", policy))

    def policy_schema(self) -> dict[str, Any]:
        """GET /policy/schema: JSON Schema, as this controller reads documents."""
        return self._read(_JsonObject, self._send("GET", "policy/schema")).root

    def policies(self) -> Iterator[PolicyDocument]:
        """GET /policy/history, newest first, page by page as they are consumed."""
        return self._pages(PolicyDocument, "policy/history", {}, size=_PAGE_OF_POLICIES)

    def explain(self, source: str, destination: str, port: str) -> Explanation:
        """GET /policy/explain. Nodes by name or id; `port` is `tcp:443`, `udp:53` or `icmp`."""
        params = {"from": source, "to": destination, "port": port}
        return self._read(Explanation, self._send("GET", "policy/explain", params=params))

    def policy_counters(self, *, node: str | None = None) -> PolicyCounters:
        """GET /policy/counters. `node` by name or id; None for all that are online."""
        params = {"node": node} if node is not None else {}
        return self._read(PolicyCounters, self._send("GET", "policy/counters", params=params))

    def explain_call(self, question: CallQuestion) -> CallExplanation:
        """POST /policy/explain-call; changes nothing."""
        return self._read(CallExplanation, self._post("policy/explain-call", question))

    # Services

    def services(self) -> Iterator[MeshService]:
        """GET /services, all pages."""
        return self._pages(MeshService, "services", {})

    def service(self, name: str) -> MeshService:
        """GET /services/{name}."""
        return self._read(MeshService, self._send("GET", f"services/{_segment(name)}"))

    def move_service(self, name: str, move: ServiceMove) -> MeshService:
        """POST /services/{name}/move."""
        return self._read(MeshService, self._post(f"services/{_segment(name)}/move", move))

    # Temporary grants

    def create_grant(self, grant: GrantCreate) -> TemporaryGrant:
        """POST /grants."""
        return self._read(TemporaryGrant, self._post("grants", grant))

    def grants(self, *, state: str | None = None) -> Iterator[TemporaryGrant]:
        """GET /grants, newest first, page by page as they are consumed. `state`: active or ended."""
        return self._pages(TemporaryGrant, "grants", {"state": state})

    def grant(self, grant_id: str) -> Tagged[TemporaryGrant]:
        """GET /grants/{id}."""
        return self._read_tagged(TemporaryGrant, self._send("GET", f"grants/{_segment(grant_id)}"))

    def extend_grant(self, grant_id: str, patch: GrantPatch) -> TemporaryGrant:
        """PATCH /grants/{id} with If-Match."""

        def attempt() -> TemporaryGrant:
            body, etag = patch.model_dump(mode="json"), self.grant(grant_id).etag
            answer = self._send("PATCH", f"grants/{_segment(grant_id)}", json=body, etag=etag)
            return self._read(TemporaryGrant, answer)

        return _again_when_stale(attempt)

    def revoke_grant(self, grant_id: str) -> None:
        """DELETE /grants/{id}."""
        self._send("DELETE", f"grants/{_segment(grant_id)}")

    # Audit

    def audit(
        self, *, action: str | None = None, subject: str | None = None, actor: str | None = None
    ) -> Iterator[AuditEntry]:
        """GET /audit, newest first, page by page as they are consumed."""
        return self._pages(AuditEntry, "audit", {"action": action, "subject": subject, "actor": actor})

    def calls(self, filters: Mapping[str, str | Sequence[str] | None]) -> Iterator[CallEntry]:
        """GET /calls, newest first, page by page as they are consumed. `filters` are those of the request."""
        return self._pages(CallEntry, "calls", filters)

    def calls_after(self, number: int, filters: Mapping[str, str | Sequence[str] | None]) -> list[CallEntry]:
        """GET /calls: some of the records that came after record `number`, as they came; none when there are none."""
        params = _given(filters) | {"after": str(number), "limit": str(_PAGE)}
        return list(self._read(Page[CallEntry], self._send("GET", "calls", params=params)).items)

    def denials(self, *, node: str | None = None, limit: int = 500) -> tuple[HostDenial, ...]:
        """GET /denials: what hosts denied in the last hour, newest minute first. `node` is an id."""
        params = {"limit": str(limit)} | ({"node": node} if node is not None else {})
        return self._read(DenialList, self._send("GET", "denials", params=params)).items

    def paths(self, *, node: str | None = None, peer: str | None = None) -> tuple[HostPath, ...]:
        """GET /paths: how connected hosts reach their peers. `node` and `peer` are ids."""
        params = {"limit": "20000"} | _given({"node": node, "peer": peer})
        return self._read(PathList, self._send("GET", "paths", params=params)).items

    # Admin tokens

    def create_token(self, token: AdminTokenCreate) -> AdminTokenCreated:
        """POST /tokens. The token is in this answer and never again."""
        return self._read(AdminTokenCreated, self._post("tokens", token))

    def tokens(self) -> Iterator[AdminToken]:
        """GET /tokens, all pages."""
        return self._pages(AdminToken, "tokens", {})

    def revoke_token(self, token_id: str) -> None:
        """DELETE /tokens/{id}."""
        self._send("DELETE", f"tokens/{_segment(token_id)}")

    # HTTP

    def _pages(
        self, model: type[M], path: str, query: Mapping[str, str | Sequence[str] | None], size: int = _PAGE
    ) -> Iterator[M]:
        params = _given(query) | {"limit": str(size)}
        while True:
            page = self._read(Page[model], self._send("GET", path, params=params))  # type: ignore[valid-type]  # mypy cannot see a class in a variable
            yield from page.items
            if page.next is None:
                return
            params["cursor"] = page.next

    def _post(self, path: str, body: BaseModel) -> httpx.Response:
        # The key makes a repetition harmless: the controller answers the second request with the first one's result.
        return self._send("POST", path, json=body.model_dump(mode="json"), idempotency_key=str(uuid.uuid4()))

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | Sequence[str]] | None = None,
        json: Any = None,
        etag: str | None = None,
        idempotency_key: str | None = None,
    ) -> httpx.Response:
        headers = {"If-Match": etag} if etag is not None else {}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        repeatable = method == "GET" or idempotency_key is not None
        pause = _PAUSE
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = self._http.request(method, path, params=params, json=json, headers=headers)
            except httpx.TransportError as error:
                problem = tls_problem(self.url, error)
                if problem is not None:
                    raise problem from error
                # Without a connection nothing was sent, so anything may be repeated; after that, only what is safe to.
                safe = isinstance(error, httpx.ConnectError) or (
                    repeatable and isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)
                )
                if not safe or attempt == _ATTEMPTS:
                    raise UnreachableError(unreachable(self.url, error)) from error
                time.sleep(pause)
                pause *= 2
            else:
                return self._checked(answer)
        raise AssertionError("the last attempt returns or raises")

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        if answer.headers.get("content-type", "").startswith("application/problem+json"):
            raise RefusedError(self._read(Problem, answer))
        raise BadAnswerError(
            f"{answer.request.method} {answer.request.url} answered {answer.status_code} {answer.reason_phrase}, "
            "without the form that a controller's errors have: check the URL, and any proxy in front of it"
        )

    def _read(self, model: type[M], answer: httpx.Response) -> M:
        try:
            return model.model_validate_json(answer.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise BadAnswerError(
                f"{answer.request.method} {answer.request.url} answered something that this version cannot read "
                f"({place + ': ' if place else ''}{first['msg']}): check the URL and that both versions agree"
            ) from error

    def _read_tagged(self, model: type[M], answer: httpx.Response) -> Tagged[M]:
        etag = answer.headers.get("etag")
        if etag is None:
            raise BadAnswerError(f"GET {answer.request.url} carries no ETag: a proxy in front of it may remove it")
        return Tagged(self._read(model, answer), etag)


def _given(query: Mapping[str, str | Sequence[str] | None]) -> dict[str, str | Sequence[str]]:
    return {key: value for key, value in query.items() if value is not None}


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
