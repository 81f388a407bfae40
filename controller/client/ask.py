"""Questions to a person at a terminal. Without one nothing is assumed: the error names the option that answers."""

import getpass
import sys

from .errors import DeclinedError, InputError

__all__ = ["agree", "secret"]


def agree(question: str, *, yes: bool, option: str = "--yes") -> None:
    """Return if the person agrees, or did with `option`. Raises DeclinedError; InputError where nobody can answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(f"{question} There is no terminal to ask on: repeat with {option} if that is what you want")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):  # end of input in place of an answer
        print(file=sys.stderr)
    if answer.strip().lower() not in {"y", "yes"}:
        raise DeclinedError("the answer was not yes")


def secret(prompt: str) -> str:
    """A secret typed without echo; from a pipe, its first line."""
    if sys.stdin.isatty():
        return getpass.getpass(prompt)
    return sys.stdin.readline()
