"""The mesh's certificate authority: signs the nodes' client certificates and, unless told otherwise, our own.

Keys are P-256 because every TLS stack has it. What is revoked is decided by the store at each use, not by CRLs: node
certificates only say which node speaks.
"""

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.problems import Kind, Refused
from controller.wire.netmap import NodeId

__all__ = ["BACKDATED", "CertificateAuthority", "NodeCertificate", "fingerprint", "identity_of", "read_csr"]

# A host whose clock is a day slow must still find its new certificate, and ours, valid.
BACKDATED: Final = timedelta(hours=48)
_CA_LIFETIME: Final = timedelta(days=20 * 365)
_PEM: Final = serialization.Encoding.PEM
_MAX_PEM: Final = 16 * 1024


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 (hex) of the DER certificate, as join strings carry it."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def identity_of(public_key: CertificatePublicKeyTypes) -> str:
    """SHA-256 (hex) of the key's SubjectPublicKeyInfo: the name of a host's identity key."""
    spki = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def read_csr(pem: str) -> ec.EllipticCurvePublicKey:
    """The P-256 key that signed this PKCS #10 request. Raises Refused (BAD_CSR)."""
    try:
        csr = x509.load_pem_x509_csr(pem[:_MAX_PEM].encode())
        key = csr.public_key()
        signed = csr.is_signature_valid
    except (ValueError, InvalidSignature, TypeError) as error:
        raise Refused(Kind.BAD_CSR, f"the certificate request cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Refused(Kind.BAD_CSR, "the certificate request's key is not P-256: make the identity key with that curve")
    if not signed:
        raise Refused(Kind.BAD_CSR, "the certificate request is not signed by its own key: make it again")
    return key


@dataclass(frozen=True, slots=True)
class NodeCertificate:
    """What a node certificate of this mesh says: the node, and the fingerprint of its identity key."""

    node_id: NodeId
    identity: str


class CertificateAuthority:
    """One mesh's CA: its certificate and private key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def create(cls, mesh_name: str, now: datetime) -> "CertificateAuthority":
        """A new CA with a new key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"wardmesh {mesh_name} CA")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + _CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate: bytes, key: bytes) -> "CertificateAuthority":
        """Read what `pem` and `key_pem` wrote. Raises ValueError."""
        loaded = x509.load_pem_x509_certificate(certificate)
        try:
            private, public = serialization.load_pem_private_key(key, password=None), loaded.public_key()
        except UnsupportedAlgorithm as error:  # a flipped bit names another curve
            raise ValueError(str(error)) from error
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != public:
            raise ValueError("the CA's key does not belong to its certificate")
        return cls(loaded, private)

    @property
    def pem(self) -> str:
        """The certificate."""
        return self.certificate.public_bytes(_PEM).decode()

    @property
    def key_pem(self) -> bytes:
        """The private key. For a file of mode 0600 only."""
        return _private_pem(self._key)

    @property
    def sha256(self) -> str:
        """The certificate's fingerprint."""
        return fingerprint(self.certificate)

    def issue_node(
        self, key: ec.EllipticCurvePublicKey, *, node_id: NodeId, mesh_id: str, now: datetime, lifetime: timedelta
    ) -> str:
        """A client certificate (PEM) for the node whose identity key is `key`."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id)])
        uri = x509.UniformResourceIdentifier(_node_uri(mesh_id, node_id))
        builder = (
            self._builder(subject, key, now, now + lifetime)
            .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(_PEM).decode()

    def issue_server(self, hosts: Sequence[str], *, now: datetime, lifetime: timedelta) -> tuple[bytes, bytes]:
        """A server certificate for these DNS names and addresses, with a new key: (certificate, key), both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._issue_server(key.public_key(), hosts, now, lifetime), _private_pem(key)

    def issue_service(
        self, key: ec.EllipticCurvePublicKey, hosts: Sequence[str], *, now: datetime, lifetime: timedelta
    ) -> str:
        """A server certificate (PEM) for the service with these names and addresses, whose host has `key`.

        It names no node and is for servers only, so it opens no stream.
        """
        return self._issue_server(key, hosts, now, lifetime).decode()

    def _issue_server(
        self, key: ec.EllipticCurvePublicKey, hosts: Sequence[str], now: datetime, lifetime: timedelta
    ) -> bytes:
        # RFC 9525 section 2: clients look at the alternative names only; the subject is for people, 64 characters.
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
        builder = (
            self._builder(subject, key, now, now + lifetime)
            .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(_PEM)

    def issued(self, certificate: x509.Certificate, mesh_id: str) -> NodeCertificate:
        """Which node the certificate names, however old it is. Raises Refused (BAD_CERTIFICATE) if it is not ours."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise Refused(
                Kind.BAD_CERTIFICATE, "the certificate was not issued by this mesh's CA: enrol the host with a new key"
            ) from error
        node_id = node_id_of(certificate, mesh_id)
        if node_id is None:
            raise Refused(Kind.BAD_CERTIFICATE, "the certificate is not a node's: send the one that enrolment returned")
        return NodeCertificate(node_id, identity_of(certificate.public_key()))

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
    ) -> x509.CertificateBuilder:
        issuer = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer),
                critical=False,
            )
        )


def node_id_of(certificate: x509.Certificate, mesh_id: str | None = None) -> NodeId | None:
    """The node that the certificate names, None when it names none (or, with `mesh_id`, one of another mesh).

    Says nothing about who signed it.
    """
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage or len(common) != 1 or len(uris) != 1:
        return None
    node_id = str(common[0].value)
    mesh, separator, named = uris[0].removeprefix(_SCHEME).partition("/node/")
    if not uris[0].startswith(_SCHEME) or not separator or named != node_id or mesh_id not in {None, mesh}:
        return None
    return node_id


_SCHEME: Final = "wardmesh://"


def _node_uri(mesh_id: str, node_id: NodeId) -> str:
    return f"{_SCHEME}{mesh_id}/node/{node_id}"


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host.encode("idna").decode())


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
