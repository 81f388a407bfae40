"""The one static configuration file: TOML, every key optional, every mistake an error that says how to correct it.

Knows nothing of the mesh: what the controller decides (addresses, peers, rules) is never configured here.
"""

import difflib
import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import ErrorDetails

from controller.wire.base import Address, Endpoint, Message, NodeName, split_endpoint
from controller.wire.stun import STUN_PORT

from .errors import ConfigError

__all__ = ["DEFAULT_FILE", "GATEWAY_USER", "Config", "load"]

DEFAULT_FILE: Final = Path("/etc/wardmesh/agentd.toml")

# dev_valid_name() in net/core/dev.c: 1-15 bytes (IFNAMSIZ less the terminator), no '/', ':' or white space, not . or ..
_LINK: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_TABLE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")


def _check_link(value: str) -> str:
    if not _LINK.fullmatch(value) or value in {".", ".."}:
        raise ValueError(f"{value!r} is not a link name: use 1-15 of letters, digits, '-', '_' and '.'")
    return value


def _check_socket(value: Path) -> Path:
    # sun_path in unix(7): 108 bytes with the terminator.
    if len(bytes(value.absolute())) > 107:
        raise ValueError(f"'{value}' is longer than the 107 bytes that a Unix socket's path may have")
    return value


def _check_table(value: str) -> str:
    if not _TABLE.fullmatch(value):
        raise ValueError(f"{value!r} is not an nftables table name: a letter, then at most 31 letters, digits or '_'")
    return value


# useradd(8): 1-32 of these, not only digits.
_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
GATEWAY_USER: Final = "wardmesh-gateway"


def _check_user(value: str) -> str:
    if not _USER.fullmatch(value):
        raise ValueError(f"{value!r} is not the name of a user: give true, false or a user's name")
    return value


def _check_hosts_file(value: Path | Literal[False]) -> Path | Literal[False]:
    if value is not False and not value.is_absolute():
        raise ValueError(f"'{value}' is not a whole path: give one from /, or false for no names on this host")
    return value


def _check_dns(value: str | Literal[False]) -> str | Literal[False]:
    if value is not False and not ipaddress.ip_address(split_endpoint(value)[0]).is_loopback:
        raise ValueError(f"{value!r} can be asked by other hosts: give an address of the loopback link, or false")
    return value


class Config(Message):
    """What the file may say. `addresses` and `name` are wishes at join time; the controller decides.

    `dns`: where the mesh's names are answered for, False: nowhere. `hosts_file`: where they are kept while nobody asks
    there, False: nowhere. `gateway`: agentd starts the MCP gateway, as
    GATEWAY_USER or as the user that is named; False: somebody else does. That one has `gateway_workers` processes,
    `gateway_spool_size` MiB of disk for the records of each, and `gateway_grace` seconds for running calls when it
    stops. `stun_port`: the first of the controller's two UDP ports that tell this host from where it is seen; False: it
    is not asked. `port_mapping`: a router in between is asked for a port. `metrics`: where Prometheus may ask, whoever
    reaches that address; False: nowhere.
    """

    name: NodeName | None = None
    addresses: Annotated[tuple[Address, ...], Field(max_length=2)] = ()
    endpoints: tuple[Endpoint, ...] = ()
    link: Annotated[str, AfterValidator(_check_link)] = "wardmesh0"
    listen_port: Annotated[int, Field(ge=1, le=65535, strict=True)] = 51820
    stun_port: Annotated[int, Field(ge=1, le=65534, strict=True)] | Literal[False] = STUN_PORT
    port_mapping: Annotated[bool, Field(strict=True)] = True
    # 1280 is the least that IPv6 allows (RFC 8200 section 5); 1420 fits WireGuard over IPv6 into 1500.
    mtu: Annotated[int, Field(ge=1280, le=65455, strict=True)] = 1420
    relay_rate: Annotated[int, Field(ge=0, le=100_000, strict=True)] = 100
    table: Annotated[str, AfterValidator(_check_table)] = "wardmesh"
    backend: Literal["auto", "kernel", "userspace"] = "auto"
    state_dir: Path = Path("/var/lib/wardmesh")
    socket: Annotated[Path, AfterValidator(_check_socket)] = Path("/run/wardmesh/agentd.sock")
    socket_group: str | None = None
    hosts_file: Annotated[Path | Literal[False], AfterValidator(_check_hosts_file)] = Path("/etc/hosts")
    dns: Annotated[Endpoint | Literal[False], AfterValidator(_check_dns)] = "127.0.0.1:5354"
    gateway: bool | Annotated[str, AfterValidator(_check_user)] = False
    gateway_workers: Annotated[int, Field(ge=1, le=256, strict=True)] = 1
    gateway_spool_size: Annotated[int, Field(ge=1, le=65536, strict=True)] = 256
    gateway_grace: Annotated[float, Field(ge=0, le=3600)] = 3.0
    metrics: Endpoint | Literal[False] = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["plain", "json"] = "plain"

    @property
    def gateway_user(self) -> str:
        """As whom the gateway runs, whoever starts it."""
        return self.gateway if isinstance(self.gateway, str) else GATEWAY_USER

    @property
    def gateway_dir(self) -> Path:
        """The state directory of the gateway that agentd starts: beside ours, as the unit's is."""
        return self.state_dir.with_name(f"{self.state_dir.name}-gateway")


def load(file: Path | None, *, state_dir: Path | None = None, socket: Path | None = None) -> Config:
    """Read `file`, or the default file if there is one; the command line's own values win. Raises ConfigError.

    A file that was asked for must exist; the default one need not.
    """
    values = _read(file or DEFAULT_FILE, required=file is not None)
    values |= {key: path for key, path in {"state_dir": state_dir, "socket": socket}.items() if path is not None}
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        reasons = "; ".join(_explain(details) for details in error.errors())
        raise ConfigError(f"{file or DEFAULT_FILE}: {reasons}") from error
    return config.model_copy(
        update={"state_dir": config.state_dir.absolute(), "socket": config.socket.absolute()},
    )


def _read(file: Path, *, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        raise ConfigError(f"{file}: there is no such configuration file; every key is optional, so drop it") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}; write one `key = value` a line") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error


def _explain(details: ErrorDetails) -> str:
    key = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Config.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(Config.model_fields)}"
        return f"unknown key {key!r}: {hint}"
    message = (
        details["msg"].removeprefix("Value error, ").replace("Input should be", "must be").replace("tuple", "list")
    )
    shown = repr(details["input"])
    return f"{key}: {message}" if shown in message else f"{key}: {message} (found {shown})"
