"""How help looks: groups of commands, and the examples at the end of each. Imports nothing that takes time."""

import typer

__all__ = ["examples", "group"]


def group(help_text: str, *lines: str) -> typer.Typer:
    """A group of commands; called without one, it prints its help."""
    return typer.Typer(help=help_text, epilog=examples(*lines), no_args_is_help=True, rich_markup_mode="markdown")


def examples(*lines: str) -> str:
    """The end of a command's help."""
    # Two spaces at a line's end are Markdown's line break.
    return "  \n".join(("**Examples**", *(f"`{line}`" for line in lines)))
