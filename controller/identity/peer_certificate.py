"""Which node is speaking: read from the verified client certificate in the ASGI scope.

Who puts it there is `controller.transport` (from the TLS connection) or `controller.identity.proxy` (from a trusted
proxy); both only after it was verified against the mesh's CA. The keys are those of the ASGI TLS extension.
"""

from collections.abc import MutableMapping
from typing import Any, Final

from cryptography import x509

from controller.identity.ca import node_id_of
from controller.wire.netmap import NodeId

__all__ = ["TLS13", "forget", "node_id", "set_tls", "tls_version"]

TLS13: Final = 0x0304  # the ProtocolVersion of RFC 8446


def node_id(scope: MutableMapping[str, Any]) -> NodeId | None:
    """The node whose certificate opened this connection; None without one."""
    chain = _tls(scope).get("client_cert_chain") or ()
    return node_id_of(x509.load_pem_x509_certificate(chain[0].encode())) if chain else None


def tls_version(scope: MutableMapping[str, Any]) -> int | None:
    """The connection's TLS version, None when it is not known (a proxy ended the TLS)."""
    version: int | None = _tls(scope).get("tls_version")
    return version


def forget(scope: MutableMapping[str, Any]) -> None:
    """Drop what is not needed any more by who knows the node: a connection may last for weeks."""
    scope.get("extensions", {}).pop("tls", None)


def set_tls(scope: MutableMapping[str, Any], *, version: int | None, chain: tuple[str, ...]) -> None:
    """Put the extension into the scope. `chain`: PEM, the client's certificate first, verified by the caller."""
    scope.setdefault("extensions", {})["tls"] = {
        "server_cert": None,
        "client_cert_chain": chain,
        "client_cert_name": None,
        "client_cert_error": None,
        "tls_version": version,
        "cipher_suite": None,
    }


def _tls(scope: MutableMapping[str, Any]) -> dict[str, Any]:
    tls: dict[str, Any] = scope.get("extensions", {}).get("tls") or {}
    return tls
