"""The `wardmesh` command put together, and how every way to fail becomes a sentence and an exit code.

0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from . import late
from .commands.help import examples
from .verbs import Verbs

__all__ = ["app", "run"]

app = typer.Typer(
    name="wardmesh",
    cls=Verbs,
    help="Manage a wardmesh: hosts, keys, static peers and the policy between them.",
    epilog=examples(
        "wardmesh login https://mesh.example.com:8443",
        "wardmesh key create --tag tag:mcp",
        "wardmesh node list",
        "wardmesh policy apply policy.yaml",
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # A traceback with local variables could show a token.
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"wardmesh {late.version.VERSION}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Manage a wardmesh: hosts, keys, static peers and the policy between them."""


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    # Wrong usage is found before any option is parsed, so the wish for JSON is read from the arguments themselves.
    as_json = "--json" in arguments
    try:
        code = app(args=list(arguments), prog_name="wardmesh", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        _print_usage_error(error, as_json=as_json)
        return error.exit_code
    except late.errors.ClientError as error:
        late.output.print_problem(error, as_json=as_json)
        return error.exit_code
    except BrokenPipeError:
        # The reader (head, less) has gone; pointing stdout at nothing keeps the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def _print_usage_error(error: typer.TyperException, *, as_json: bool) -> None:
    message = error.format_message().replace("Value error, ", "")
    if not message:
        return  # a group without a command: its help has been printed
    context: typer.Context | None = getattr(error, "ctx", None)
    command = context.command_path if context else "wardmesh"
    said = message.rstrip(".")
    problem = late.errors.InputError(f"{said}{'' if said.endswith('?') else '.'} See `{command} --help`")
    late.output.print_problem(problem, as_json=as_json)
