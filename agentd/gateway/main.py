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
from .process import run
from .settings import Settings
from .spool import SpoolError
from .workers import supervise

__all__ = ["main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def gateway(
    *,
    policy: Annotated[Path, typer.Option(help="The policy that agentd writes (JSON); followed while it changes.")],
    state_dir: Annotated[Path, typer.Option(help="Where the audit spool and the session key are kept.")],
    agent_socket: Annotated[Path, typer.Option(help="Where agentd answers who callers are.")] = Path(
        "/run/wardmesh/agentd.sock"
    ),
    callers: Annotated[Path | None, typer.Option(help="A fixed list of callers (JSON), instead of agentd.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="How many processes carry calls.")] = 1,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running calls have when it stops.")] = 10.0,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    worker: Annotated[int, typer.Option(hidden=True)] = -1,
) -> None:
    """The MCP gateway of one host: passes calls from the mesh to MCP servers as policy allows, and records them."""
    set_up(log_level, "plain")
    settings = Settings(policy, state_dir, agent_socket, callers, workers, grace)
    try:
        if workers > 1 and worker < 0:
            raise typer.Exit(uvloop.run(supervise(sys.argv[1:], workers, grace)))
        uvloop.run(run(settings, max(worker, 0)))
    except (AgentError, SpoolError) as error:
        typer.echo(f"wardmesh-gateway: {error}", err=True)
        raise typer.Exit(1) from None
    except asyncio.CancelledError:
        raise typer.Exit(130) from None


def main() -> None:
    """Run the command and exit with its code."""
    app()
