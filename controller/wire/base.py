"""Scalars that are checked once, where they enter, and trusted from then on.

A `NodeName` that exists is a DNS label; a `PublicKey` that exists can be given to a kernel.
Error messages name the value and the remedy, because people read them in a terminal.
"""

import base64
import binascii
import ipaddress
import re
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = [
    "Address",
    "Endpoint",
    "Message",
    "NodeName",
    "Prefix",
    "PublicKey",
    "Revision",
    "Tag",
    "Text",
    "UserName",
    "check_address",
    "check_endpoint",
    "check_name",
    "check_prefix",
    "check_public_key",
    "check_tag",
    "check_text",
    "check_user",
    "format_endpoint",
    "split_endpoint",
]


class Message(BaseModel):
    """A frozen value with no unknown fields: what does not parse is refused, never half-understood."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_USER: Final = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,63}")
_FIELD_PRIME: Final = 2**255 - 19
# u-coordinates of small order on Curve25519 (RFC 7748 section 6.1 asks for the check; the list is of the points whose
# order divides 8). A peer with such a key would share the same secret with everybody.
_LOW_ORDER: Final = frozenset(
    {
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _FIELD_PRIME - 1,
    }
)


def check_name(value: str) -> str:
    """Accept a DNS label (RFC 1123: 1-63 of a-z, 0-9, '-'; no '-' at either end), lower case only."""
    if _LABEL.fullmatch(value):
        return value
    if not value.isascii():
        bad = next(c for c in value if not c.isascii())
        raise ValueError(
            f"{value!r} contains {bad!r} (U+{ord(bad):04X}), which only looks like a plain letter: use a-z, 0-9 and '-'"
        )
    raise ValueError(f"{value!r} is not a DNS label: use 1-63 of a-z, 0-9 and '-', with no '-' at either end")


def check_tag(value: str) -> str:
    """Accept `tag:` followed by a DNS label."""
    prefix, colon, label = value.partition(":")
    if prefix != "tag" or not colon:
        raise ValueError(f"{value!r} is not a tag: write it as tag:NAME")
    check_name(label)
    return value


def check_user(value: str) -> str:
    """Accept what an identity provider or an admin calls a person: 1-64 of a-z, 0-9, '.', '_', '-', '+' and '@'."""
    if _USER.fullmatch(value):
        return value
    raise ValueError(f"{value!r} is not a user's name: use 1-64 of a-z, 0-9, '.', '_', '-', '+', '@', like alice")


def check_public_key(value: str) -> str:
    """Accept a Curve25519 public key as WireGuard writes it: 44 characters of canonical base64, not of low order."""
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32 or base64.b64encode(raw).decode() != value:
        raise ValueError(
            f"{value!r} is not a WireGuard public key: expected 44 base64 characters, as `wg pubkey` prints"
        )
    # RFC 7748 section 5: the top bit of a received u-coordinate is ignored, and values are reduced.
    coordinate = (int.from_bytes(raw, "little") & (2**255 - 1)) % _FIELD_PRIME
    if coordinate in _LOW_ORDER:
        raise ValueError(f"{value!r} is a low-order point: nothing sent to it would be secret; make a new key")
    return value


def check_address(value: str) -> str:
    """Accept an IPv4 or IPv6 address and return its canonical text (RFC 5952); no scope, no prefix length."""
    try:
        return str(ipaddress.ip_address(value)) if "%" not in value else _refuse_address(value)
    except ValueError:
        return _refuse_address(value)


def _refuse_address(value: str) -> str:
    raise ValueError(f"{value!r} is not an IP address: write it like 192.0.2.1 or 2001:db8::1")


def check_prefix(value: str) -> str:
    """Accept an IPv4 or IPv6 prefix without host bits and return its canonical text."""
    try:
        return str(ipaddress.ip_network(value, strict=True))
    except ValueError as error:
        raise ValueError(f"{value!r} is not a prefix: {error}") from error


def split_endpoint(value: str) -> tuple[str, int]:
    """Split `192.0.2.1:51820` or `[2001:db8::1]:51820` into canonical address and UDP port (1-65535)."""
    host, colon, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536 or (":" in host) != bracketed:
        raise ValueError(f"{value!r} is not an endpoint: write it like 192.0.2.1:51820 or [2001:db8::1]:51820")
    return check_address(host[1:-1] if bracketed else host), int(port)


def format_endpoint(address: str, port: int) -> str:
    """The inverse of `split_endpoint`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def check_endpoint(value: str) -> str:
    """Accept an endpoint and return its canonical text."""
    return format_endpoint(*split_endpoint(value))


def check_text(value: str) -> str:
    """Accept text without the NUL character, which PostgreSQL cannot store and no editor shows."""
    if "\0" in value:
        raise ValueError(f"there is a NUL character at position {value.index(chr(0))}: remove it")
    return value


UserName = Annotated[str, AfterValidator(check_user)]
NodeName = Annotated[str, AfterValidator(check_name)]
Tag = Annotated[str, AfterValidator(check_tag)]
PublicKey = Annotated[str, AfterValidator(check_public_key)]
Address = Annotated[str, AfterValidator(check_address)]
Prefix = Annotated[str, AfterValidator(check_prefix)]
Endpoint = Annotated[str, AfterValidator(check_endpoint)]
Text = Annotated[str, AfterValidator(check_text)]
Revision = Annotated[int, Field(ge=0, description="Monotonic number of a mutation; 0 is before the first")]
