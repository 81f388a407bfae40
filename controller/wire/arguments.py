"""What argument rules mean: compiled once, then asked of every call.

Pure but for one hook: a host that shares the upstream's file system passes `follow`, which refuses a path that symbolic
links lead elsewhere. The controller explains without it. Arguments come from callers: nothing here trusts their types.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from .file_paths import PathError, compile_under
from .matching import compile_globs, compile_hosts, compile_pattern, compile_schema
from .mcp import ArgumentRule, ArgumentTest, Equals, HostIn, Matches, OneOf, Range, ToolRules, Under

__all__ = ["ArgumentCheck", "FollowLinks", "ToolChecks", "compile_rule", "compile_tool_rules", "same_json"]

ArgumentCheck = Callable[[Mapping[str, Any]], str | None]
"""From a call's arguments to what is wrong with them, for the caller to read; None when the rules hold."""

ToolChecks = Callable[[str], ArgumentCheck | None]

_Judge = Callable[[Any], str | None]
_MISSING: Final = object()


class FollowLinks(Protocol):
    """Raises PathError when `path` leads outside all of `bases` on this host's file system."""

    def __call__(self, path: str, bases: Sequence[str]) -> None: ...


def compile_tool_rules(entries: Sequence[ToolRules], follow: FollowLinks | None = None) -> ToolChecks:
    """From a tool's name to the check of its calls: every entry that names the tool must hold. None: no entry does."""
    compiled = [(compile_globs(entry.tools), _entry_checks(entry, follow)) for entry in entries]

    def checks_of(tool: str) -> ArgumentCheck | None:
        checks = [check for names, entry_checks in compiled if names(tool) for check in entry_checks]
        return _all_of(checks) if checks else None

    return checks_of


def _entry_checks(entry: ToolRules, follow: FollowLinks | None) -> list[ArgumentCheck]:
    checks = [compile_rule(rule, follow) for rule in entry.arguments]
    return checks if entry.arguments_schema is None else [*checks, _schema_check(entry.arguments_schema)]


def _all_of(checks: Sequence[ArgumentCheck]) -> ArgumentCheck:
    if len(checks) == 1:
        return checks[0]

    def check(arguments: Mapping[str, Any]) -> str | None:
        for each in checks:
            if (wrong := each(arguments)) is not None:
                return wrong
        return None

    return check


def _schema_check(schema: dict[str, Any]) -> ArgumentCheck:
    valid = compile_schema(schema)
    return lambda arguments: None if valid(arguments) else "the arguments do not have the form that policy asks for"


def compile_rule(rule: ArgumentRule, follow: FollowLinks | None = None) -> ArgumentCheck:
    """The check of one argument."""
    judges = [_judge(test, follow) for test in rule.tests]
    steps = _steps(rule.argument)
    name, optional, each = rule.argument, rule.optional, rule.each

    def judge(value: Any) -> str | None:
        for one in judges:
            if (wrong := one(value)) is not None:
                return f"argument {name!r} {wrong}"
        return None

    def check(arguments: Mapping[str, Any]) -> str | None:
        value = _find(arguments, steps)
        if value is _MISSING:
            return None if optional else f"argument {name!r} must be given"
        if not each:
            return judge(value)
        if not isinstance(value, list):
            return f"argument {name!r} must be an array"
        return next((wrong for wrong in map(judge, value) if wrong is not None), None)

    return check


def _steps(argument: str) -> tuple[str, ...]:
    """A top-level name, or the reference tokens of a JSON pointer (RFC 6901 section 4)."""
    if not argument.startswith("/"):
        return (argument,)
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in argument[1:].split("/"))


def _find(value: Any, steps: tuple[str, ...]) -> Any:
    for step in steps:
        if isinstance(value, dict):
            value = value.get(step, _MISSING)
        elif (
            isinstance(value, list) and step.isascii() and step.isdigit() and len(step) <= 6 and str(int(step)) == step
        ):
            value = value[int(step)] if int(step) < len(value) else _MISSING
        else:
            return _MISSING
    return value


def _judge(test: ArgumentTest, follow: FollowLinks | None) -> _Judge:
    match test:
        case Equals(value=wanted):
            return lambda value: None if same_json(value, wanted) else f"must be {wanted!r}"
        case OneOf(values=values):
            shown = ", ".join(map(repr, values))
            return lambda value: None if any(same_json(value, v) for v in values) else f"must be one of {shown}"
        case Matches(pattern=pattern):
            matches = compile_pattern(pattern)
            return _text_judge(matches, f"must match {pattern!r}")
        case Range():
            return _range_judge(test)
        case HostIn(hosts=hosts):
            return _text_judge(compile_hosts(hosts), f"must be a plain URL or host of {', '.join(hosts)}")
        case Under(paths=paths):
            return _under_judge(paths, follow)


def _text_judge(test: Callable[[str], bool], wrong: str) -> _Judge:
    return lambda value: None if isinstance(value, str) and test(value) else wrong


def _range_judge(test: Range) -> _Judge:
    low = -math.inf if test.minimum is None else test.minimum
    high = math.inf if test.maximum is None else test.maximum
    wrong = f"must be a number from {low} to {high}"

    def judge(value: Any) -> str | None:
        # bool is an int in Python and not a number in JSON; NaN fails every comparison.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return None if number and low <= value <= high and abs(value) != math.inf else wrong

    return judge


def _under_judge(paths: tuple[str, ...], follow: FollowLinks | None) -> _Judge:
    wrong = f"must be a path below {' or '.join(paths)}"
    check = compile_under(paths)

    def judge(value: Any) -> str | None:
        if not isinstance(value, str):
            return wrong
        try:
            check(value)
            if follow is not None:
                follow(value, paths)
        except PathError as error:
            return f"{wrong}: {error}"
        return None

    return judge


def same_json(left: Any, right: Any) -> bool:
    """Equality of JSON values: numbers by value, true and false are not numbers, objects without order."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_json(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same_json, left, right))
    return type(left) is type(right) and bool(left == right)
