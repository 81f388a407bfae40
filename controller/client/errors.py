"""What can go wrong between an admin and a controller, each as a Problem: one sentence, and what to do.

Errors that the controller reported and errors that happened on this side have the same form, so that a script which
reads `--json` errors needs one parser. A problem of this side has `status` 0: there was no answer.
"""

from typing import Any, Final

from pydantic import ValidationError

from controller.wire.rest import Problem

__all__ = [
    "BadAnswerError",
    "ClientError",
    "DeclinedError",
    "InputError",
    "LocalFileError",
    "NotFoundError",
    "NotLoggedInError",
    "RefusedError",
    "UnreachableError",
    "UntrustedError",
]

_URN: Final = "urn:wardmesh:problem:client:"


class ClientError(Exception):
    """Anything that ends a command with a sentence instead of a result."""

    exit_code = 1

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}" if problem.detail else problem.title)
        self.problem = problem


class RefusedError(ClientError):
    """The controller answered with a problem; it is passed on as it came."""


class _LocalError(ClientError):
    """A problem of this side, which no controller reported."""

    kind = "local"
    title = "The command failed"

    def __init__(self, detail: str, *, errors: tuple[dict[str, Any], ...] = ()) -> None:
        super().__init__(Problem(type=_URN + self.kind, title=self.title, status=0, detail=detail, errors=errors))


class UnreachableError(_LocalError):
    """No connection, or it broke before an answer came."""

    kind = "unreachable"
    title = "The controller cannot be reached"


class UntrustedError(_LocalError):
    """TLS was refused on this side: nothing secret has been sent."""

    kind = "untrusted"
    title = "The controller's certificate is not trusted"


class BadAnswerError(_LocalError):
    """Something answered that does not speak this API."""

    kind = "bad-answer"
    title = "The answer is not a wardmesh controller's"


class NotLoggedInError(_LocalError):
    """There is no controller, or no token, to use."""

    kind = "not-logged-in"
    title = "Not logged in"


class NotFoundError(_LocalError):
    """A name that nothing bears."""

    kind = "not-found"
    title = "Not found"


class LocalFileError(_LocalError):
    """A file on this machine could not be read or written."""

    kind = "file"
    title = "File problem"


class DeclinedError(_LocalError):
    """The person was asked and did not agree."""

    kind = "declined"
    title = "Nothing was changed"


class InputError(_LocalError):
    """An argument that parses but cannot be meant."""

    kind = "input"
    title = "Wrong argument"
    exit_code = 2

    @classmethod
    def from_validation(cls, error: ValidationError) -> "InputError":
        """The messages of the wire types, which name the value and the remedy, without pydantic's frame."""
        details = error.errors(include_url=False, include_context=False, include_input=False)
        found = tuple(
            {"field": ".".join(str(part) for part in d["loc"]), "message": _message(d["msg"])} for d in details
        )
        return cls("; ".join(item["message"] for item in found), errors=found if len(found) > 1 else ())


def _message(text: str) -> str:
    return text.removeprefix("Value error, ")
