"""The `wardmesh-gateway` command: parse, set up logging, run one process or several.

0 stopped when told, 1 could not start, 2 wrong usage.
"""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from ..errors import AgentError
from ..log import set_up
from .build import described
from .privileges import gain_no_privileges
from .process import run
from .settings import Settings
from .spool import SpoolError
from .workers import supervise

__all__ = ["main"]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(described())
        raise typer.Exit


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(
    epilog="**Examples**  \n`wardmesh-gateway --state-dir /var/lib/wardmesh-gateway`  \n"
    "`wardmesh-gateway --state-dir DIR --policy policy.json --callers callers.json`"
)
def gateway(
    *,
    state_dir: Annotated[Path, typer.Option(help="Where the audit spool and the session key are kept.")],
    agent_socket: Annotated[Path, typer.Option(help="Where agentd says what to serve, and who callers are.")] = Path(
        "/run/wardmesh/agentd.sock"
    ),
    policy: Annotated[
        Path | None, typer.Option(help="A policy file (JSON), instead of agentd; followed while it changes.")
    ] = None,
    callers: Annotated[Path | None, typer.Option(help="A fixed list of callers (JSON), instead of agentd.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="How many processes carry calls.")] = 1,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running calls have when it stops.")] = 10.0,
    spool_size: Annotated[
        int, typer.Option(min=1, max=65536, help="MiB of records that each process keeps while nobody takes them.")
    ] = 256,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    with_parent: Annotated[
        bool, typer.Option("--with-parent", help="Stop when standard input ends, as it does when the parent is gone.")
    ] = False,
    worker: Annotated[int, typer.Option(hidden=True)] = -1,
    siblings: Annotated[str, typer.Option(hidden=True)] = "",
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Say the version and the build, and end."
        ),
    ] = False,
) -> None:
    """The MCP gateway of one host: passes calls from the mesh to MCP servers as policy allows, and records them."""
    set_up(log_level, "plain")
    gain_no_privileges()
    settings = Settings(
        policy=policy,
        state_dir=state_dir,
        agent_socket=agent_socket,
        callers=callers,
        workers=workers,
        grace=grace,
        spool_bytes=spool_size << 20,
        with_parent=with_parent or worker >= 0,
        siblings=tuple(map(int, siblings.split(","))) if siblings else (),
    )
    try:
        if workers > 1 and worker < 0:
            raise typer.Exit(uvloop.run(supervise(sys.argv[1:], workers, grace, with_parent=with_parent)))
        uvloop.run(run(settings, max(worker, 0)))
    except (AgentError, SpoolError) as error:
        typer.echo(f"wardmesh-gateway: {error}", err=True)
        raise typer.Exit(1) from None
    except asyncio.CancelledError:
        raise typer.Exit(130) from None


def main() -> None:
    """Run the command and exit with its code."""
    app()
