"""What a grant says about calls, in words for people: one entry for each tool, prompt, resource and method."""

from collections.abc import Iterator

from controller.wire.matching import compile_globs
from controller.wire.mcp import ArgumentRule, ArgumentTest, Equals, HostIn, Matches, OneOf, Range, ToolRules, Under

from .document import McpRules

__all__ = ["calls_in_words"]


def calls_in_words(rules: McpRules) -> Iterator[str]:
    """Entries like `tool get_file (path under /project-x)`. Equal entries allow the same."""
    for tool in rules.tools:
        yield f"tool {tool}" + _conditions(rules, tool)
    yield from (f"prompt {prompt}" for prompt in rules.prompts)
    yield from (f"resource {uri}" for uri in rules.resources)
    yield from (f"method {method}" for method in rules.methods)


def _conditions(rules: McpRules, tool: str) -> str:
    found = [f"not {denied}" for denied in rules.deny_tools if _concerns(denied, tool)]
    found += [words for entry in rules.args if _concerns(entry.tools[0], tool) for words in _entry(entry, tool)]
    found += [
        f"{limit.rate.calls}/{limit.rate.seconds:g}s" + _apart(limit.tools[0], tool)
        for limit in rules.limits
        if _concerns(limit.tools[0], tool)
    ]
    return f" ({'; '.join(found)})" if found else ""


def _concerns(pattern: str, tool: str) -> bool:
    """Two patterns may have tools in common; that they have none is only said of names."""
    return "*" in tool or compile_globs([pattern])(tool)


def _entry(entry: ToolRules, tool: str) -> Iterator[str]:
    for rule in entry.arguments:
        yield _rule(rule) + _apart(entry.tools[0], tool)
    if entry.arguments_schema is not None:
        yield f"arguments fit {entry.arguments_schema}" + _apart(entry.tools[0], tool)


def _apart(pattern: str, tool: str) -> str:
    return "" if pattern == tool else f" for {pattern}"


def _rule(rule: ArgumentRule) -> str:
    tests = " and ".join(map(_test, rule.tests))
    each = "each of " if rule.each else ""
    return f"{each}{rule.argument} {tests}" + (", if given" if rule.optional else "")


def _test(test: ArgumentTest) -> str:
    match test:
        case Equals(value=value):
            return f"is {value!r}"
        case OneOf(values=values):
            return f"is one of {', '.join(map(repr, values))}"
        case Matches(pattern=pattern):
            return f"matches {pattern!r}"
        case Range(minimum=low, maximum=high):
            return f"is from {'any' if low is None else low} to {'any' if high is None else high}"
        case Under(paths=paths):
            return f"under {', '.join(paths)}"
        case HostIn(hosts=hosts):
            return f"at {', '.join(hosts)}"
