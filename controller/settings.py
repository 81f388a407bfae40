"""What the operator chose for this process. Values only: reading options and environment is `controller.main`'s."""

import ipaddress
import re
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from controller.wire.base import split_endpoint
from controller.wire.stun import STUN_PORT

__all__ = ["DEFAULT_STATE_DIR", "VERSION", "Listen", "Settings", "SettingsError", "check_url"]

VERSION: Final = version("wardmesh")
DEFAULT_STATE_DIR: Final = Path("/var/lib/wardmesh-controller")


class SettingsError(ValueError):
    """An option cannot be used; the message names it, its value and the remedy."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Address and port; port 0 takes a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, option: str = "--listen") -> "Listen":
        """`0.0.0.0:8443`, `[::]:8443`. Raises SettingsError, which names the option."""
        try:
            host, port = split_endpoint(text)
        except ValueError as error:
            address, _, port_text = text.rpartition(":")
            if port_text != "0":
                raise SettingsError(f"{option} {text}: write it like 0.0.0.0:8443 or [::]:8443") from error
            host, port = split_endpoint(f"{address}:1")[0], 0
        return cls(host, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Settings:
    """One controller process. `mesh_name`, `prefix4` and `prefix6` are None when the operator left them open."""

    state_dir: Path
    listen: Listen = Listen("0.0.0.0", 8443)  # noqa: S104  a server that hosts elsewhere must reach
    stun: Listen | Literal["off"] | None = None  # None: at the address of `listen`, if the ports are free
    url: str | None = None
    database_url: str | None = field(default=None, repr=False)  # it may hold a password
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    trusted_proxies: tuple[str, ...] = ()
    traces: str | None = field(default=None, repr=False)  # a collector's URL
    mesh_name: str | None = None
    prefix4: str | None = None
    prefix6: str | None = None
    node_lifetime: timedelta = timedelta(hours=72)
    address_quarantine: timedelta = timedelta(hours=1)
    ephemeral_after: timedelta = timedelta(minutes=30)
    calls_kept: timedelta = timedelta(days=30)
    grant_longest: timedelta = timedelta(days=30)
    client_rate: int = 200  # requests a second of one client address; 0 is no limit, as for the two below
    key_rate: int = 50  # joins a second by one enrolment key
    stream_rate: int = 60  # streams a minute that one node opens
    streams_waiting: int = 1000  # hosts that wait for their greeting at the same time
    body_limit: int = 64 * 1024  # bytes of a request
    # Bytes of a request about policy: a document may have 4 MiB of text, which JSON escapes can make longer.
    policy_limit: int = 9 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse what cannot work together. Raises SettingsError."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingsError("--tls-cert and --tls-key belong together: give both or neither")
        if self.tls_ca is not None and self.tls_cert is None:
            raise SettingsError("--tls-ca is the root of --tls-cert: give that too, or leave both away")
        if self.url is not None:
            check_url(self.url)
        if self.traces is not None and not re.fullmatch(r"https?://[^/?#@]+(/[^?#]*)?", self.traces):
            raise SettingsError(f"--traces {self.traces}: write it like http://127.0.0.1:4318, without a user or query")
        for proxy in self.trusted_proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise SettingsError(f"--trusted-proxy {proxy}: write an address or a prefix") from error

    @property
    def default_stun(self) -> Listen:
        """Where STUN is answered when the operator said nothing; free ports beside a free port."""
        return Listen(self.listen.host, STUN_PORT if self.listen.port else 0)

    @property
    def database(self) -> str:
        """The database's URL: the given one, or SQLite in the state directory."""
        return self.database_url or f"sqlite:///{self.state_dir.absolute() / 'controller.db'}"


def check_url(url: str) -> str:
    """Accept the public URL that join strings carry. Raises SettingsError."""
    parts = urlsplit(url)
    try:
        usable = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.path not in {"", "/"} or parts.query or parts.fragment or parts.username:
        raise SettingsError(f"--url {url}: write it like https://mesh.example.com:8443, with no path")
    return url.rstrip("/")
