"""What can be refused, and how it is named outside: one enum of problem types (RFC 9457), one error that carries it.

Knows nothing of HTTP beyond status numbers; the domain raises, the API renders.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any

__all__ = ["Kind", "Refused"]


class Kind(Enum):
    """Every problem type that the controller answers with. The URN is stable; titles may be reworded."""

    # Who is asking
    UNAUTHENTICATED = ("unauthenticated", 401, "No valid token")
    CERTIFICATE_REQUIRED = ("certificate-required", 401, "No valid node certificate")
    FORBIDDEN = ("forbidden", 403, "The token's role does not allow this")
    TOO_MANY_FAILURES = ("too-many-failures", 429, "Too many attempts with a wrong token")
    TOO_MANY_REQUESTS = ("too-many-requests", 429, "Too many requests")
    # What was sent
    BAD_REQUEST = ("bad-request", 400, "The request cannot be read")
    INVALID = ("invalid", 422, "The request does not fit its schema")
    INVALID_CURSOR = ("invalid-cursor", 422, "The cursor is not one that this list gave")
    TOO_LARGE = ("too-large", 413, "The request is too large")
    UNSUPPORTED_MEDIA_TYPE = ("unsupported-media-type", 415, "The body is not JSON")
    NOT_FOUND = ("not-found", 404, "There is no such thing")
    METHOD_NOT_ALLOWED = ("method-not-allowed", 405, "The method is not allowed here")
    # Editing
    PRECONDITION_REQUIRED = ("precondition-required", 428, "If-Match is required")
    PRECONDITION_FAILED = ("precondition-failed", 412, "Somebody else changed it")
    IDEMPOTENCY_KEY_REUSED = ("idempotency-key-reused", 422, "The Idempotency-Key was used for another request")
    # Enrolment
    KEY_UNKNOWN = ("enrolment-key-unknown", 403, "The enrolment key is not known")
    KEY_EXPIRED = ("enrolment-key-expired", 403, "The enrolment key has expired")
    KEY_USED_UP = ("enrolment-key-used-up", 403, "The enrolment key is used up")
    KEY_REVOKED = ("enrolment-key-revoked", 403, "The enrolment key was revoked")
    BAD_CSR = ("bad-csr", 422, "The certificate request is not acceptable")
    BAD_CERTIFICATE = ("bad-certificate", 403, "The certificate is not one of this mesh's")
    IDENTITY_IN_USE = ("identity-in-use", 409, "The host is already a node")
    NODE_REMOVED = ("node-removed", 403, "The node is not in the mesh")
    NODE_DISABLED = ("node-disabled", 403, "The node is disabled")
    # Nodes
    NAME_TAKEN = ("name-taken", 409, "Another node has the name")
    PUBLIC_KEY_IN_USE = ("public-key-in-use", 409, "Another node has the public key")
    NOT_EDITABLE = ("not-editable", 409, "This cannot be edited here")
    NOT_STATIC = ("not-a-static-peer", 409, "The node is not a static peer")
    # Addresses
    ADDRESS_TAKEN = ("address-taken", 409, "Another node has the address")
    ADDRESS_QUARANTINED = ("address-quarantined", 409, "The address was released a moment ago")
    ADDRESS_UNUSABLE = ("address-unusable", 422, "The address cannot be given to a node")
    POOL_EMPTY = ("address-pool-empty", 409, "No address is free")
    # Services
    CANNOT_SERVE = ("node-cannot-serve", 409, "The node may not serve this service")
    NOT_HEALTHY = ("node-not-healthy", 409, "The node cannot answer for this service now")
    # Policy
    POLICY_REFUSED = ("policy-refused", 422, "The policy document is not acceptable")
    # Temporary grants
    GRANT_REFUSED = ("grant-refused", 422, "The temporary grant is not acceptable")
    GRANT_ENDED = ("grant-ended", 409, "The temporary grant has ended")
    # Ours
    INTERNAL = ("internal", 500, "The controller failed")
    UNAVAILABLE = ("unavailable", 503, "The controller cannot answer now")

    def __init__(self, slug: str, status: int, title: str) -> None:
        self.urn = f"urn:wardmesh:problem:{slug}"
        self.status = status
        self.title = title


class Refused(Exception):  # noqa: N818  it reads as what it is: `raise Refused(Kind.NAME_TAKEN, ...)`
    """The request is understood and not done. `detail` names the value and the remedy and is shown to people.

    `errors` are machine-readable particulars, for instance a name that is free. `retry_after`: seconds until asking
    again makes sense, where that is known.
    """

    def __init__(self, kind: Kind, detail: str, *errors: Mapping[str, Any], retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.errors = tuple(dict(error) for error in errors)
        self.retry_after = retry_after
