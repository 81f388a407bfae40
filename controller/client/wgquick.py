"""wg-quick files for static peers: the private key is made and put in here, on the admin's machine.

The controller writes the file without the key. wireguard-tools' own writer is not used for this: it drops comments
and writes IPv6 endpoints without their brackets, which wg-quick refuses.
"""

import base64
import io
import re
from dataclasses import dataclass, field

import segno
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from .errors import InputError

__all__ = ["KeyPair", "qr", "with_private_key"]

_PRIVATE_KEY = re.compile(r"^[ \t]*(?:#[ \t]*)?PrivateKey[ \t]*=[^\n]*\n?", re.IGNORECASE | re.MULTILINE)
_KEY_VALUE = re.compile(r"^[ \t]*PrivateKey[ \t]*=[ \t]*(\S+)", re.IGNORECASE | re.MULTILINE)
_INTERFACE = re.compile(r"^[ \t]*\[Interface\][^\n]*\n", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A WireGuard key pair as its tools write it, 44 characters of base64 each."""

    private: str = field(repr=False)
    public: str

    @classmethod
    def generate(cls) -> "KeyPair":
        """A new pair from the operating system's random source."""
        return cls._of(X25519PrivateKey.generate())

    @classmethod
    def read(cls, text: str, *, source: str) -> "KeyPair":
        """From a wg-quick file, or from the bare key as `wg genkey` prints it. Raises InputError."""
        found = _KEY_VALUE.search(text)
        value = found[1] if found else text.strip()
        try:
            return cls._of(X25519PrivateKey.from_private_bytes(base64.b64decode(value, validate=True)))
        except ValueError as error:  # its message could repeat the key
            raise InputError(
                f"{source} contains no WireGuard private key: expected a wg-quick file, or what `wg genkey` prints"
            ) from error

    @classmethod
    def _of(cls, key: X25519PrivateKey) -> "KeyPair":
        public = key.public_key().public_bytes_raw()
        return cls(private=_base64(key.private_bytes_raw()), public=_base64(public))


def with_private_key(wg_quick: str, private: str) -> str:
    """The file with `PrivateKey` in its [Interface] section, in place of any placeholder."""
    stripped = _PRIVATE_KEY.sub("", wg_quick)
    section = _INTERFACE.search(stripped)
    if section is None:
        raise InputError("the controller's wg-quick file has no [Interface] section")
    return f"{stripped[: section.end()]}PrivateKey = {private}\n{stripped[section.end() :]}"


def qr(text: str, *, terminal: bool) -> str:
    """The text as a QR code of half blocks, as the WireGuard apps read it. Raises InputError when it is too long.

    On a terminal the colours are set, so that it reads the same on dark and light ones.
    """
    try:
        code = segno.make_qr(text, mode="byte", encoding="utf-8", error="L", boost_error=False)
    except segno.DataOverflowError as error:
        raise InputError(
            f"the wg-quick file has {len(text.encode())} bytes, more than a QR code holds (2953): use --output"
        ) from error
    drawing = io.StringIO()
    code.terminal(drawing, compact=True)
    lines = drawing.getvalue().splitlines()
    # segno paints the light modules: white on black, whatever the terminal's own colours are.
    return "\n".join(f"\x1b[97;40m{line}\x1b[0m" if terminal else line for line in lines)


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
