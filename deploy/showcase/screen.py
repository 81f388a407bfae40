"""How the demo looks: a line a step with the time it took, its findings beneath. Knows nothing of the mesh."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

__all__ = ["Screen"]


class Screen:
    """Colours on a terminal, plain text elsewhere. `shown` collects the titles of the steps that succeeded."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.shown: list[str] = []
        self._begin = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One thing that is shown. An exception makes it a red line and goes on its way."""
        begin = time.monotonic()
        self.console.print(Text.assemble(("• ", "cyan"), (title, "bold")))
        try:
            yield
        except BaseException:
            self.console.print(Text(f"  ✗ after {time.monotonic() - begin:.1f} s", style="bold red"))
            raise
        self.shown.append(title)
        self.console.print(Text.assemble(("  ✓ ", "bold green"), (f"{time.monotonic() - begin:.1f} s", "dim")))

    def fact(self, label: str, value: str, style: str = "") -> None:
        """Something measured or seen."""
        self.console.print(Text.assemble((f"    {label:<14}", "dim"), (value, style)))

    def command(self, text: str) -> None:
        """What a person would have typed to do the same."""
        self.console.print(Text.assemble(("    $ ", "dim cyan"), (text, "cyan")))

    def block(self, text: str) -> None:
        """A document or a program's output, as it is."""
        for line in text.rstrip().splitlines():
            self.console.print(Text(f"      {line}", style="dim"))

    def heading(self, text: str) -> None:
        self.console.print(Text(f"\n{text}", style="bold"))

    def say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style))

    def elapsed(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._begin
