"""The `wardmesh` command put together, and how every way to fail becomes a sentence and an exit code.

0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from .commands import audit, grants, keys, login, nodes, paths, peers, policy, services, status, tokens
from .commands.options import examples
from .errors import ClientError, InputError
from .output import print_problem

__all__ = ["app", "run"]

app = typer.Typer(
    name="wardmesh",
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
login.add_to(app)
status.add_to(app)
app.add_typer(nodes.app, name="node")
app.add_typer(keys.app, name="key")
app.add_typer(peers.app, name="peer")
app.add_typer(policy.app, name="policy")
app.add_typer(grants.app, name="grant")
app.add_typer(services.app, name="service")
app.add_typer(paths.app, name="path")
app.add_typer(audit.app, name="audit")
app.add_typer(tokens.app, name="token")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"wardmesh {version('wardmesh')}")
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
    except ClientError as error:
        print_problem(error, as_json=as_json)
        return error.exit_code
    except typer.TyperException as error:
        _print_usage_error(error, as_json=as_json)
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
    print_problem(InputError(message.rstrip(".") + f". See `{command} --help`"), as_json=as_json)
