"""What one gateway process was told on its command line, and the files that it keeps."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from controller.wire.base import Address, Message, NodeName, PublicKey, Tag
from controller.wire.mcp import GatewayPolicy
from controller.wire.netmap import NodeId

from ..errors import AgentError, StateError
from .sessions import KEY_BYTES
from .types import Caller

__all__ = ["Settings", "read_callers", "read_policy", "session_key"]


@dataclass(frozen=True, slots=True)
class Settings:
    """`policy` None: agentd is followed at `agent_socket`. `callers` None: agentd is asked there who callers are.

    `grace`: seconds that running exchanges have at the end. `spool_bytes`: what the
    audit spool of each process may take on the disk. `with_parent`: end when standard input does. `siblings`:
    descriptors that a worker inherits, to pass connections on by.
    """

    policy: Path | None
    state_dir: Path
    agent_socket: Path
    callers: Path | None
    workers: int
    grace: float
    spool_bytes: int
    with_parent: bool
    siblings: tuple[int, ...] = ()


class _StaticCaller(Message):
    """A line of the callers' file, for a gateway that runs without a mesh."""

    node_id: NodeId
    name: NodeName
    public_key: PublicKey
    tags: tuple[Tag, ...] = ()
    address: Address


_CALLERS: TypeAdapter[tuple[_StaticCaller, ...]] = TypeAdapter(tuple[_StaticCaller, ...])


def read_policy(file: Path) -> GatewayPolicy:
    """The policy of a gateway that runs without agentd. Raises AgentError."""
    try:
        return GatewayPolicy.model_validate_json(file.read_bytes())
    except OSError as error:
        raise AgentError(
            f"the policy {file} cannot be read ({error.strerror}): write it, or leave --policy out to follow agentd"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AgentError(f"the policy {file} is not one that this gateway knows: {where}: {first['msg']}") from error


def read_callers(file: Path) -> dict[str, Caller]:
    """A fixed table of callers by address. Raises AgentError."""
    try:
        listed = _CALLERS.validate_json(file.read_bytes())
    except OSError as error:
        raise AgentError(f"the callers' file {file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise AgentError(f"the callers' file {file} is not a list of callers: {error.errors()[0]['msg']}") from error
    return {one.address: Caller(one.node_id, one.name, one.public_key, one.tags, one.address) for one in listed}


def session_key(state_dir: Path) -> bytes:
    """The key that session ids are sealed with, made at the first start. Raises StateError.

    All processes of a gateway share it, and it outlives them: a restart ends no session.
    """
    file = state_dir / "session.key"
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            fresh = state_dir / f".session.key.{os.getpid()}"
            fresh.touch(mode=0o600)
            fresh.write_bytes(secrets.token_bytes(KEY_BYTES))
            try:
                os.link(fresh, file)  # whoever is first, wins; the others read what it wrote
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        key = file.read_bytes()
    except OSError as error:
        raise StateError(f"the gateway's state directory {state_dir} cannot be used: {error.strerror}") from error
    if len(key) != KEY_BYTES:
        raise StateError(f"{file} is damaged: remove it (legacy sessions then start over)")
    return key
