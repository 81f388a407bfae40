"""Which controller `wardmesh` talks to, and with which token: from the environment, or from what `login` saved.

The environment wins as a whole: with WARDMESH_URL set, nothing saved is used, so that a saved token can never be sent
to another controller.
"""

import json
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from .errors import InputError, LocalFileError, NotLoggedInError
from .files import read_text, remove, write_private
from .rest import RestClient
from .trust import PinnedCa, system_context

__all__ = ["Session", "check_token", "check_url", "connect", "forget", "load", "load_saved", "load_saved_for", "save"]

_REMEDY: Final = "run `wardmesh login URL`, or set WARDMESH_URL and WARDMESH_TOKEN"


@dataclass(frozen=True, slots=True)
class Session:
    """A controller, the token for it, and the CA to believe (None: this machine's trust store)."""

    url: str
    token: str = field(repr=False)
    ca: PinnedCa | None

    def tls(self) -> ssl.SSLContext:
        """The context that decides whether the other side is that controller."""
        return self.ca.context() if self.ca else system_context()

    def open(self) -> RestClient:
        """A client; the caller closes it."""
        return RestClient(self.url, self.token, self.tls())


def connect() -> RestClient:
    """A client for the present session. Raises NotLoggedInError."""
    return load().open()


def load() -> Session:
    """The session that commands use. Raises NotLoggedInError, InputError, LocalFileError."""
    url = os.environ.get("WARDMESH_URL")
    if url is None:
        saved = load_saved()
        if saved is None:
            raise NotLoggedInError(f"no controller is known: {_REMEDY}")
        return saved
    token = os.environ.get("WARDMESH_TOKEN")
    if not token:
        raise NotLoggedInError("WARDMESH_URL is set but WARDMESH_TOKEN is not: set both, or neither")
    ca = os.environ.get("WARDMESH_CA")
    return Session(
        url=check_url(url),
        token=check_token(token),
        ca=PinnedCa.from_pem(read_text(Path(ca)), source=ca) if ca else None,
    )


def load_saved() -> Session | None:
    """What `login` saved; None when there is nothing."""
    path = _path()
    if not path.exists():
        return None
    try:
        values = json.loads(read_text(path))
        ca = values["ca"]
        return Session(
            url=check_url(values["url"]),
            token=check_token(values["token"]),
            ca=PinnedCa.from_pem(ca, source=str(path)) if ca is not None else None,
        )
    except (ValueError, KeyError, TypeError, InputError) as error:
        raise LocalFileError(f"{path} is damaged: run `wardmesh logout`, then `wardmesh login URL`") from error


def load_saved_for(url: str) -> Session | None:
    """What `login` saved, if it is for this controller; a damaged file is as good as none."""
    try:
        saved = load_saved()
    except LocalFileError:
        return None
    return saved if saved and saved.url == url else None


def save(session: Session) -> Path:
    """Replace the saved session; the file is readable by its owner only."""
    path = _path()
    values = {"url": session.url, "token": session.token, "ca": session.ca.pem if session.ca else None}
    write_private(path, json.dumps(values, indent=2) + "\n", replace=True)
    return path


def forget() -> bool:
    """Remove the saved session; False when there was none."""
    return remove(_path())


def check_url(value: str) -> str:
    """`https://HOST[:PORT]`, without a trailing slash. Raises InputError."""
    text = value.strip()
    parts = urlsplit(text if "://" in text else f"https://{text}")
    try:
        port = parts.port
    except ValueError as error:
        raise InputError(f"{value!r} is not a controller's URL: {error}") from error
    if parts.scheme != "https":
        raise InputError(f"{value!r} must be an https URL: the token would cross the network in the clear")
    if not parts.hostname or parts.username or parts.path.strip("/") or parts.query or parts.fragment:
        raise InputError(f"{value!r} is not a controller's URL: write it like https://mesh.example.com:8443")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"https://{host}" + (f":{port}" if port is not None else "")


def check_token(value: str) -> str:
    """An admin token's form; what it is worth, only the controller knows. The message never shows it."""
    token = value.strip()
    if not token:
        raise InputError("the token is empty")
    if not token.startswith("wma_") or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            "that is not an admin token: it starts with wma_. The controller printed one at its first start; "
            "`wardmesh-controller token create` makes another"
        )
    return token


def _path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "wardmesh" / "session.json"
