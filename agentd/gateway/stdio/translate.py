"""A modern caller (2026-07-28) with a legacy server: requests and results in the words of the other. Pure.

What the server cannot do in the modern way (ask the caller in mid-call) it does not do: the gateway declares no client
capability on its behalf.
"""

from collections.abc import Mapping
from typing import Any, Final

__all__ = [
    "DISCOVERED_BY_GATEWAY",
    "META_PREFIX",
    "MODERN_VERSION",
    "REMOVED",
    "SUBSCRIPTION_KEY",
    "discover_result",
    "legacy_params",
    "modern_error",
    "modern_result",
    "status_of",
]

MODERN_VERSION: Final = "2026-07-28"
META_PREFIX: Final = "io.modelcontextprotocol/"
SUBSCRIPTION_KEY: Final = META_PREFIX + "subscriptionId"
DISCOVERED_BY_GATEWAY: Final = "server/discover"
# Methods of the handshake era, which do not exist in a modern request.
REMOVED: Final = frozenset({"initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"})
_CACHEABLE: Final = frozenset(
    {"tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read", "server/discover"}
)
_CAPABILITIES: Final = ("prompts", "resources", "tools", "completions", "experimental")
_INVALID_PARAMS: Final = -32602
# Codes that the modern revision took out of use, and what says the same.
_RETIRED: Final = {-32002: _INVALID_PARAMS, -32042: -32603}
_STATUS: Final = {-32700: 400, -32600: 400, _INVALID_PARAMS: 400, -32601: 404, -32020: 400, -32021: 400, -32022: 400}


def legacy_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """A modern request's parameters without what only the modern revision has."""
    kept = {key: value for key, value in params.items() if key not in {"_meta", "inputResponses", "requestState"}}
    meta = params.get("_meta")
    if isinstance(meta, dict):
        plain = {key: value for key, value in meta.items() if not key.startswith(META_PREFIX)}
        if plain:
            kept["_meta"] = plain
    return kept


def modern_result(method: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """A legacy result with what the modern revision requires of every one."""
    hints = {"ttlMs": 0, "cacheScope": "private"} if method in _CACHEABLE else {}
    return {**hints, **result, "resultType": "complete"}


def modern_error(error: Mapping[str, Any]) -> dict[str, Any]:
    """A legacy error without retired codes."""
    code = error.get("code")
    return {**error, "code": _RETIRED.get(code, code)} if isinstance(code, int) else dict(error)


def discover_result(initialized: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to `server/discover` that a legacy server's handshake contains."""
    offered = initialized.get("capabilities")
    offered = offered if isinstance(offered, dict) else {}
    result: dict[str, Any] = {
        "supportedVersions": [MODERN_VERSION],
        "capabilities": {key: offered[key] for key in _CAPABILITIES if key in offered},
        "_meta": {META_PREFIX + "serverInfo": initialized.get("serverInfo", {"name": "unnamed", "version": ""})},
    }
    if isinstance(initialized.get("instructions"), str):
        result["instructions"] = initialized["instructions"]
    return modern_result(DISCOVERED_BY_GATEWAY, result)


def status_of(error: Mapping[str, Any]) -> int:
    """The HTTP status that a modern server sends with a JSON-RPC error."""
    code = error.get("code")
    return _STATUS.get(code, 200) if isinstance(code, int) else 200
