"""What a bench measures, and how it is said: figures, bars that they are held against, tables. Starts nothing.

A bench compares with something measured in the same run, because machines differ and the guest is noisy: `alternate`
takes turns between the things compared and keeps every measurement.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from rich.console import Console
from rich.table import Table

__all__ = ["Bar", "Bench", "Runs", "alternate"]

Sense = Literal["<=", ">="]


@dataclass(frozen=True, slots=True)
class Bar:
    """A number that was promised, beside the one that was measured."""

    value: float
    limit: float
    sense: Sense

    @property
    def holds(self) -> bool:
        return self.value <= self.limit if self.sense == "<=" else self.value >= self.limit


@dataclass(frozen=True, slots=True)
class Runs:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]

    @property
    def lowest(self) -> float:
        return min(self.values)

    @property
    def highest(self) -> float:
        return max(self.values)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def over(self, other: Self) -> float:
        """How many times the other's value, in the median of the rounds that `alternate` measured.

        Steadier than a comparison of the highest where the machine is busy by spells: both of a round shared the spell.
        """
        return statistics.median(one / two for one, two in zip(self.values, other.values, strict=True))


def alternate(measurements: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Runs]:
    """Measure each thing once a round, in turn, and in reverse order every other round.

    What disturbs the machine for a while then disturbs all of them alike.
    """
    if rounds < 1:
        raise ValueError(f"{rounds} rounds measure nothing; ask for at least 1")
    taken: dict[str, list[float]] = {name: [] for name in measurements}
    names = list(measurements)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            taken[name].append(measurements[name]())
    return {name: Runs(tuple(values)) for name, values in taken.items()}


@dataclass(slots=True)
class Bench:
    """Collects what one bench finds; the runner prints it."""

    name: str
    kernel: str
    console: Console = field(default_factory=lambda: Console(width=120, highlight=False))
    figures: dict[str, Any] = field(default_factory=dict)
    bars: dict[str, Bar] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Tell what is being done; a bench may take minutes."""
        self.console.print(text)

    def figure(self, name: str, value: float | str) -> float | str:
        """Record a figure; put the unit into the name (`apply_ms`)."""
        self.figures[name] = value
        return value

    def bar(self, name: str, value: float, sense: Sense, limit: float) -> Bar:
        """Hold a value against a limit; the value is a figure too. Returns the bar."""
        bar = Bar(value, limit, sense)
        self.figures[name] = value
        self.bars[name] = bar
        return bar

    def table(self, title: str, columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
        """Print a table; numbers are rounded to four significant digits."""
        self.console.print(f"\n{title}", style="bold")
        table = Table()
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*(_readable(cell) for cell in row))
        self.console.print(table)

    def to_json(self) -> str:
        """One line, as the last line of output."""
        bars = {
            name: {"value": bar.value, "limit": bar.limit, "sense": bar.sense, "holds": bar.holds}
            for name, bar in self.bars.items()
        }
        return json.dumps(
            {"bench": self.name, "kernel": self.kernel, "figures": self.figures, "bars": bars}, allow_nan=False
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        loaded = json.loads(text)
        bars = {name: Bar(bar["value"], bar["limit"], bar["sense"]) for name, bar in loaded["bars"].items()}
        return cls(name=loaded["bench"], kernel=loaded["kernel"], figures=loaded["figures"], bars=bars)

    def print_summary(self) -> None:
        """Figures, then bars, as tables."""
        plain = [(name, value) for name, value in self.figures.items() if name not in self.bars]
        if plain:
            self.table(f"{self.name}: figures on {self.kernel}", ("figure", "value"), plain)
        if self.bars:
            rows = [
                (name, bar.value, f"{bar.sense} {_readable(bar.limit)}", "holds" if bar.holds else "MISSED")
                for name, bar in self.bars.items()
            ]
            self.table(f"{self.name}: bars on {self.kernel}", ("bar", "value", "limit", ""), rows)


def _readable(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) and abs(cell) < 10_000 else str(cell)
