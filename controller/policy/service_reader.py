"""The section `services`: what is offered at which port, on which nodes, and how the MCP gateway serves it.

Reads into the wire's own `Service`; its addresses and names are not in the document, the mesh fills them in.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from controller.wire.matching import check_glob
from controller.wire.mcp import AuditRules, HttpUpstream, Limits, Rate, StdioUpstream, Upstream
from controller.wire.mcp import Service as Gateway

from .document import Selector, Service
from .findings import Findings
from .mcp_reader import McpReader
from .ports import parse_ports
from .reader import Reader
from .tree import Items, Text, Tree

__all__ = ["GATEWAY_PORT", "GATEWAY_TLS_PORT", "ServiceReader"]

GATEWAY_PORT: Final = 80
GATEWAY_TLS_PORT: Final = 443
SERVICE_KEYS: Final = ("on", "port", "kind", "mcp", "http")
COMMON_KEYS: Final = ("upstream", "origins", "limits", "audit")
STDIO_KEYS: Final = ("command", "environment", "directory", "per")
MCP_KEYS: Final = ("upstream", *STDIO_KEYS, "path", "local_files", "origins", "limits", "audit")
LIMIT_KEYS: Final = ("body", "headers", "depth", "streams", "calls", "cool_down")
AUDIT_KEYS: Final = ("arguments", "mask", "full")
_ORIGIN: Final = re.compile(r"https?://[^\s/?#@]{1,255}")


class ServiceReader(Reader):
    """Reads services; `selector` reads what `on` names."""

    def __init__(self, findings: Findings, selector: Callable[[Text], Selector | None]) -> None:
        super().__init__(findings)
        self._selector = selector
        self._rates = McpReader(findings)

    def service(self, name: str, key: Text, tree: Tree) -> Service | None:
        """The service that `key` declares."""
        what = f"service {key.value!r}"
        fields = self.fields(tree, what, SERVICE_KEYS)
        sorts = [sort for sort in ("mcp", "http") if sort in fields]
        if not self.has(fields, ("on",), what, tree):
            return None
        on = self.one_or_more(fields["on"], f"on of {what}", self._selector)
        if len(sorts) > 1:
            self.findings.error("value", f"{what} has both mcp and http: it is one of them", tree.place)
            return None
        if not sorts:
            port = self._server(what, fields, tree)
            return None if port is None else Service(name, on, port, None, key.place)
        for extra in ("port", "kind"):
            if extra in fields:
                message = (
                    f"{what} is served by the gateway, at ports {GATEWAY_PORT} and {GATEWAY_TLS_PORT}: {extra} is for"
                )
                message += " servers on the hosts' own addresses"
                self.findings.error("value", message, fields[extra].place)
        gateway = self._gateway(name, sorts[0], fields[sorts[0]])
        return None if gateway is None else Service(name, on, GATEWAY_PORT, gateway, key.place)

    def _server(self, what: str, fields: dict[str, Tree], tree: Tree) -> int | None:
        if "kind" in fields:
            self.choice(fields["kind"], "kind", ("tcp", "mcp"))
        if "port" not in fields:
            message = f"{what} needs a port, or mcp or http for the gateway to serve it"
            self.findings.error("missing-key", message, tree.place)
            return None
        text = self.text(fields["port"], "port")
        return None if text is None else self.checked(text, _port, "port")

    def _gateway(self, name: str, sort: str, tree: Tree) -> Gateway | None:
        fields = self.fields(tree, sort, MCP_KEYS if sort == "mcp" else COMMON_KEYS)
        parts: dict[str, Any] = {"upstream": self._upstream(sort, fields, tree), "tls_port": GATEWAY_TLS_PORT}
        if "path" in fields:
            path = self.text(fields["path"], "path")
            parts["path"] = None if path is None else path.value
        if "local_files" in fields:
            parts["local_files"] = self.truth(fields["local_files"], "local_files")
        if "origins" in fields:
            parts["origins"] = self.texts(fields["origins"], "origins", _origin)
        if "limits" in fields:
            parts["limits"] = self._limits(fields["limits"])
        if "audit" in fields:
            parts["audit"] = self._audit(fields["audit"])
        if None in parts.values():
            return None  # each was reported where it stands
        return self.built(lambda: Gateway(name=name, kind="mcp" if sort == "mcp" else "http", **parts), tree)

    def _upstream(self, sort: str, fields: dict[str, Tree], tree: Tree) -> Upstream | None:
        if ("upstream" in fields) == ("command" in fields):
            either = "upstream (a URL) or command (a list), one of them" if sort == "mcp" else "upstream, a URL"
            self.findings.error("missing-key", f"{sort} needs {either}", tree.place)
            return None
        if "command" in fields:
            return self._command(fields)
        for key in STDIO_KEYS:
            if key in fields:
                self.findings.error("value", f"{key} goes with command, not with upstream", fields[key].place)
        text = self.text(fields["upstream"], "upstream")
        return None if text is None else self.built(lambda: HttpUpstream(url=text.value), text)

    def _command(self, fields: dict[str, Tree]) -> Upstream | None:
        tree = fields["command"]
        if not isinstance(tree, Items):
            self.findings.error("type", "command must be a list: the program and its arguments", tree.place)
            return None
        words = [text.value for item in tree.items if (text := self.text(item, "an item of command")) is not None]
        pairs = self.entries(fields["environment"], "environment") if "environment" in fields else ()
        settings = {key.value: text.value for key, value in pairs if (text := self.text(value, key.value)) is not None}
        directory = self.text(fields["directory"], "directory") if "directory" in fields else None
        per = self.choice(fields["per"], "per", ("service", "caller")) if "per" in fields else "service"
        for word in (*words, *settings, *settings.values(), directory.value if directory else ""):
            if "\0" in word:
                self.findings.error("value", f"{word!r} has a NUL character: no program can be given it", tree.place)
                return None
        if directory is not None and not directory.value.startswith("/"):
            self.findings.error("value", f"directory {directory.value!r} must start with /", directory.place)
        return self.built(
            lambda: StdioUpstream(
                command=tuple(words),
                environment=settings,
                directory=directory.value if directory else None,
                per="caller" if per == "caller" else "service",
            ),
            tree,
        )

    def _limits(self, tree: Tree) -> Limits | None:
        fields = self.fields(tree, "limits", LIMIT_KEYS)
        calls: Rate | None = self._rates.rate(fields.pop("calls")) if "calls" in fields else None
        numbers = {key: self.number(value, key) for key, value in fields.items()}
        if None in numbers.values():
            return None
        parts: dict[str, Any] = {**numbers, "calls": calls}
        return self.built(lambda: Limits(**parts), tree)

    def _audit(self, tree: Tree) -> AuditRules | None:
        fields = self.fields(tree, "audit", AUDIT_KEYS)
        parts: dict[str, Any] = {}
        if "arguments" in fields:
            parts["arguments"] = self.truth(fields["arguments"], "arguments")
        if "mask" in fields:
            parts["mask"] = (*AuditRules().mask, *self.texts(fields["mask"], "mask", check_glob))
        if "full" in fields:
            parts["full"] = self.choice(fields["full"], "full", ("deny", "drop"))
        return None if None in parts.values() else self.built(lambda: AuditRules(**parts), tree)


def _port(value: str) -> int:
    low, high = parse_ports(value)
    if low != high:
        raise ValueError(f"{value!r}: a service has one port")
    return low


def _origin(value: str) -> str:
    if not _ORIGIN.fullmatch(value):
        raise ValueError(f"{value!r} is not a web origin: write it like https://app.example.com, without a path")
    return value
