"""What is wrong with a document, and where: the places, the findings, and the error that carries them.

Knows nothing of the language.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from controller.wire.rest import PolicyFinding

__all__ = ["Findings", "Place", "PolicyError", "suggestion"]

_LIMIT: Final = 100  # errors, and warnings, that are reported of one document: who has more mends these first


class Place(NamedTuple):
    """Line and column in the text, both counted from 1."""

    line: int
    column: int


class PolicyError(Exception):
    """The text is not a policy document. `findings` say why, each with its place."""

    def __init__(self, findings: Iterable[PolicyFinding]) -> None:
        self.findings = tuple(findings)
        super().__init__("; ".join(_sentence(finding) for finding in self.findings[:3]))


def _sentence(finding: PolicyFinding) -> str:
    place = f"line {finding.line}, column {finding.column}: " if finding.line is not None else ""
    return place + finding.message


@dataclass(slots=True)
class Findings:
    """Collects findings while a document is read, so that a person sees all of them at once."""

    found: list[PolicyFinding] = field(default_factory=list)
    _errors: int = 0

    def error(self, code: str, message: str, place: Place | None) -> None:
        """Note an error. Raises PolicyError with everything so far when there are too many to read on."""
        self.found.append(PolicyFinding(severity="error", code=code, message=message, **_at(place)))
        self._errors += 1
        if self._errors >= _LIMIT:
            self.raise_errors()

    def warning(self, code: str, message: str, place: Place | None) -> None:
        """Note a warning, unless there are enough."""
        if not self.is_full:
            self.found.append(PolicyFinding(severity="warning", code=code, message=message, **_at(place)))

    @property
    def has_errors(self) -> bool:
        return self._errors > 0

    @property
    def is_full(self) -> bool:
        """True when no further warning would be kept."""
        return len(self.found) - self._errors >= _LIMIT

    def in_order(self) -> tuple[PolicyFinding, ...]:
        """Errors before warnings, then in the order of the text."""
        return tuple(
            sorted(self.found, key=lambda f: (f.severity != "error", f.line or 0, f.column or 0, f.code, f.message))
        )

    def raise_errors(self) -> None:
        if self.has_errors:
            raise PolicyError(self.in_order())


def _at(place: Place | None) -> dict[str, int]:
    return {} if place is None else {"line": place.line, "column": place.column}


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` with the nearest known name, or nothing when none is near."""
    near = difflib.get_close_matches(wrong, sorted(set(known)), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
