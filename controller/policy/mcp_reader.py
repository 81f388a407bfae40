"""The `mcp:` of grants: which tools, prompts, resources and methods, and with which arguments and how often.

Reads into the wire's own values, whose checks (patterns compile, schemas refer to nothing outside) are the language's.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from controller.wire.calls import UseKind
from controller.wire.file_paths import check_base
from controller.wire.matching import (
    check_glob,
    check_host_pattern,
    check_pattern,
    check_uri_glob,
    compile_globs,
)
from controller.wire.mcp import (
    ArgumentRule,
    ArgumentTest,
    Equals,
    HostIn,
    Matches,
    OneOf,
    Range,
    Rate,
    ToolRate,
    ToolRules,
    Under,
)

from .document import Call, McpRules
from .findings import suggestion
from .reader import Reader
from .tree import Items, Pairs, Text, Tree

__all__ = ["McpReader", "parse_rate"]

KEYS: Final = ("tools", "deny_tools", "prompts", "resources", "methods", "args", "schemas", "limits")
RULE_KEYS: Final = ("equals", "one_of", "pattern", "range", "under", "host", "optional", "each")
_RATE: Final = re.compile(r"([0-9]{1,7})/([0-9]{0,5})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_rate(value: str) -> Rate:
    """`500/10s`, `60/m`: so many calls in so many seconds, minutes, hours or days. Raises ValueError."""
    match = _RATE.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is not a rate: write it like 500/10s or 60/m")
    calls, seconds = int(match[1]), int(match[2] or 1) * _SECONDS[match[3]]
    if not 0 < calls <= 1_000_000 or not 0 < seconds <= 86400:
        raise ValueError(f"{value!r} is out of bounds: 1 to 1000000 calls, in a second to a day")
    return Rate(calls=calls, seconds=seconds)


CALL_KEYS: Final[Mapping[str, UseKind]] = {
    "tools": "tool",
    "prompts": "prompt",
    "resources": "resource",
    "methods": "method",
}


class McpReader(Reader):
    """Reads what a grant, or a test, says about calls."""

    def rules(self, tree: Tree) -> McpRules:
        """The value of a grant's `mcp`."""
        fields = self.fields(tree, "mcp", KEYS)
        tools = self._globs(fields, "tools", check_glob)
        args = (*self._args(fields.get("args"), tools), *self._schemas(fields.get("schemas"), tools))
        return McpRules(
            tools=tools,
            deny_tools=self._globs(fields, "deny_tools", check_glob),
            prompts=self._globs(fields, "prompts", check_glob),
            resources=self._globs(fields, "resources", check_uri_glob),
            methods=self._globs(fields, "methods", check_glob),
            args=args,
            limits=tuple(
                ToolRate(tools=(tool,), rate=rate)
                for tool, value in self._by_tool(fields.get("limits"), "limits", tools)
                if (rate := self.rate(value)) is not None
            ),
        )

    def calls(self, tree: Tree, what: str) -> tuple[Call, ...]:
        """What a test expects of calls: names, and for a tool also a call's arguments, `{TOOL: {ARGUMENT: VALUE}}`."""
        fields = self.fields(tree, what, tuple(CALL_KEYS))
        found = []
        for key, value in fields.items():
            for item in value.items if isinstance(value, Items) else (value,):
                found.append(self._call(CALL_KEYS[key], item))
        if not found:
            self.findings.error("empty", f"{what} is empty: name a tool, like {{tools: [get_file]}}", tree.place)
        return tuple(call for call in found if call is not None)

    def _call(self, kind: UseKind, tree: Tree) -> Call | None:
        if kind != "tool" or not isinstance(tree, Pairs):
            text = self.text(tree, f"a {kind}")
            return None if text is None else Call(kind, text.value, None, text.place)
        pairs = list(self.entries(tree, "a call"))
        if len(pairs) != 1:
            message = "a call is one tool with its arguments, like {get_file: {path: /a}}"
            self.findings.error("type", message, tree.place)
            return None
        ((name, value),) = pairs
        arguments = self.json(value)
        if not isinstance(arguments, dict):
            message = f"the arguments of {name.value!r} must be a mapping from names to values"
            self.findings.error("type", message, value.place)
            return None
        return Call(kind, name.value, arguments, name.place)

    def rate(self, tree: Tree) -> Rate | None:
        text = self.text(tree, "a rate")
        return None if text is None else self.checked(text, parse_rate, "rate")

    def _globs(self, fields: dict[str, Tree], key: str, check: Callable[[str], str]) -> tuple[str, ...]:
        tree = fields.get(key)
        if tree is None or (isinstance(tree, Items) and not tree.items):
            return ()  # an empty list allows nothing, which is what it says
        return self.texts(tree, key, check)

    def _by_tool(self, tree: Tree | None, what: str, tools: tuple[str, ...]) -> list[tuple[str, Tree]]:
        """The entries of a mapping from tools. One that the grant does not allow is an error: a rule that a wrong name
        keeps from its tool would leave that tool without any."""
        found = []
        for key, value in self.entries(tree, what) if tree is not None else ():
            tool = self.checked(key, check_glob, "value")
            if tool is None:
                continue
            if "*" not in tool and not compile_globs(tools)(tool):
                near = suggestion(tool, tools)
                message = f"{what} speaks of {tool!r}, which this grant's tools do not name{near}"
                self.findings.error("tool", message, key.place)
                continue
            found.append((tool, value))
        return found

    def _args(self, tree: Tree | None, tools: tuple[str, ...]) -> list[ToolRules]:
        return [
            ToolRules(tools=(tool,), arguments=rules)
            for tool, value in self._by_tool(tree, "args", tools)
            if (rules := tuple(self._arguments(tool, value)))
        ]

    def _arguments(self, tool: str, tree: Tree) -> list[ArgumentRule]:
        what = f"the arguments of {tool!r}"
        found = [self._rule(name, value) for name, value in self.entries(tree, what)]
        if not found:
            self.findings.error("empty", f"{what}: name an argument or remove the entry", tree.place)
        return [rule for rule in found if rule is not None]

    def _schemas(self, tree: Tree | None, tools: tuple[str, ...]) -> list[ToolRules]:
        found = []
        for tool, value in self._by_tool(tree, "schemas", tools):
            schema = self.json(value)
            if not isinstance(schema, dict):
                self.findings.error("type", f"the schema of {tool!r} must be a JSON Schema object", value.place)
                continue
            found.append(self.built(partial(ToolRules, tools=(tool,), arguments_schema=schema), value))
        return [rules for rules in found if rules is not None]

    def _rule(self, name: Text, tree: Tree) -> ArgumentRule | None:
        what = f"the rule for argument {name.value!r}"
        fields = self.fields(tree, what, RULE_KEYS)
        optional, each = (self.truth(fields.pop(key), key) if key in fields else False for key in ("optional", "each"))
        tests = [self._test(key, value) for key, value in fields.items()]
        if not fields:
            wanted = ", ".join(key for key in RULE_KEYS if key not in ("optional", "each"))
            if not (isinstance(tree, Pairs) and any(_is_unknown(key) for key, _ in tree.pairs)):
                self.findings.error("missing-key", f"{what} needs at least one of {wanted}", tree.place)
            return None
        good = tuple(test for test in tests if test is not None)
        if len(good) < len(tests):
            return None
        return self.built(lambda: ArgumentRule(argument=name.value, tests=good, optional=optional, each=each), name)

    def _test(self, key: str, tree: Tree) -> ArgumentTest | None:
        match key:
            case "equals":
                value = self.json(tree)
                return self.built(lambda: Equals(value=value), tree)
            case "one_of":
                return self._one_of(tree)
            case "pattern":
                text = self.text(tree, key)
                pattern = None if text is None else self.checked(text, check_pattern, "value")
                return None if pattern is None else Matches(pattern=pattern)
            case "range":
                return self._range(tree)
            case "under":
                paths = self.texts(tree, key, check_base)
                return Under(paths=paths) if paths else None
            case _:
                hosts = self.texts(tree, key, check_host_pattern)
                return HostIn(hosts=hosts) if hosts else None

    def _one_of(self, tree: Tree) -> ArgumentTest | None:
        if not isinstance(tree, Items) or not tree.items:
            self.findings.error("type", "one_of must be a list of values", tree.place)
            return None
        values = tuple(self.json(item) for item in tree.items)
        return self.built(lambda: OneOf(values=values), tree)

    def _range(self, tree: Tree) -> ArgumentTest | None:
        fields = self.fields(tree, "range", ("min", "max"))
        bounds = {key: self.number(value, f"{key} of range") for key, value in fields.items()}
        low, high = bounds.get("min"), bounds.get("max")
        if not fields:
            self.findings.error("missing-key", "range needs min, max or both, like {min: 1, max: 100}", tree.place)
        elif low is not None and high is not None and low > high:
            self.findings.error("value", f"the range runs backwards: min is {low}, max {high}", tree.place)
        elif None not in bounds.values():
            return self.built(lambda: Range(minimum=low, maximum=high), tree)
        return None


def _is_unknown(key: Tree) -> bool:
    return not isinstance(key, Text) or key.value not in RULE_KEYS
