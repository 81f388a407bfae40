"""The `agentd` command: parse, load the configuration, call one function, print.

0 done, 1 failed or not well, 2 wrong usage, 130 interrupted. What only some commands need is used through `late`.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from controller.wire.enrol import JoinStringError

from . import config as configuration
from . import late
from .config import Config
from .errors import AgentError
from .host import agent_version
from .local_api import (
    Denied,
    DeniedRequest,
    Diff,
    DiffRequest,
    Identity,
    LeaveRequest,
    Left,
    Peers,
    PeersRequest,
    Rotated,
    RotateKeyRequest,
    Status,
    StatusRequest,
    WhoisRequest,
)
from .local_client import NotRunningError, ask
from .model import KernelError
from .own_daemon import ask_daemon
from .path_messages import Netcheck, NetcheckRequest, Paths, PathsRequest

__all__ = ["app", "run_command"]


_FOLLOW_EVERY = 1.0  # seconds


def _examples(*lines: str) -> str:
    # Two spaces at a line's end are Markdown's line break.
    return "  \n".join(("**Examples**", *(f"`{line}`" for line in lines)))


app = typer.Typer(
    name="agentd",
    help="The wardmesh daemon of one host: joins a mesh and keeps its tunnels, routes and firewall as policy says.",
    epilog=_examples("sudo agentd join -", "sudo agentd run", "agentd status"),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


class _Options:
    """The options before the command; the configuration file is read when a command needs it."""

    def __init__(self, file: Path | None, state_dir: Path | None, socket: Path | None) -> None:
        self._file, self._state_dir, self._socket = file, state_dir, socket

    def load(self) -> Config:
        return configuration.load(self._file, state_dir=self._state_dir, socket=self._socket)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"agentd {agent_version()}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", help=f"Configuration file  [default: {configuration.DEFAULT_FILE}]")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", help="Keys and the saved map  [default: /var/lib/wardmesh]")
    ] = None,
    socket: Annotated[
        Path | None, typer.Option("--socket", help="The daemon's socket  [default: /run/wardmesh/agentd.sock]")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The wardmesh daemon of one host: joins a mesh and keeps its tunnels, routes and firewall as policy says."""
    del version
    context.obj = _Options(config, state_dir, socket)


@app.command(epilog=_examples("sudo agentd join -", "sudo agentd join --join-file /root/join --name db-1"))
def join(
    context: typer.Context,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="STRING", help="The join string; '-' reads it from standard input, which hides it from ps."
        ),
    ] = None,
    join_file: Annotated[
        Path | None, typer.Option("--join-file", envvar="WARDMESH_JOIN_FILE", help="Read the join string from a file.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The node's name  [default: the host's]")] = None,
) -> None:
    """Make this host a node of the mesh that the join string names."""
    config: Config = context.obj.load()
    if name is not None:
        config = config.model_copy(update={"name": late.join.choose_name(name)})
    facts = late.join.HostFacts(tuple(late.links.local_addresses()), tuple(late.links.host_networks()))
    joined = late.join.join(
        late.state.StateDir(config.state_dir), config, _join_string(text, join_file), facts, say=_say
    )
    node = joined.node
    typer.echo(
        f"{'joined' if joined.new else 'already joined'} {node.mesh.name} as {node.name}: {' '.join(node.addresses)}"
    )
    if joined.state == "pending":
        typer.echo(f"an administrator must approve it: wardmesh node approve {node.name}")


def _join_string(text: str | None, file: Path | None) -> str:
    if text not in {None, "-"}:
        return str(text)
    if text == "-":
        return sys.stdin.read()
    if file is not None:
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise AgentError(f"cannot read the join string from {file}: {error}") from error
    if sys.stdin.isatty():
        return str(typer.prompt("Join string", hide_input=True))
    raise typer.BadParameter("give a join string, '-' to read it from standard input, or --join-file FILE")


@app.command(
    epilog=_examples(
        "agentd --config /etc/wardmesh/agentd.toml run",
        "sudo agentd run --gateway",
        "sudo agentd run --gateway --workers 4 --spool-size 1024 --grace 30",
        "sudo agentd run --no-port-mapping",
    )
)
def run(
    context: typer.Context,
    *,
    gateway: Annotated[
        bool,
        typer.Option(
            "--gateway", help="Start the MCP gateway too while there is something to serve, as the configured user."
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="How many processes of that gateway carry calls  [default: 1]")
    ] = None,
    spool_size: Annotated[
        int | None,
        typer.Option(
            min=1, max=65536, help="MiB of records that each of them keeps while nobody takes them  [default: 256]"
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(min=0, max=3600, help="Seconds that running calls have when the gateway stops  [default: 3]"),
    ] = None,
    port_mapping: Annotated[
        bool | None,
        typer.Option(
            "--port-mapping/--no-port-mapping",
            help="Whether to ask a router in between for a port (PCP, NAT-PMP, UPnP)  [default: yes]",
        ),
    ] = None,
) -> None:
    """Run the daemon in the foreground; it logs to standard error. What is not given, the configuration file says."""
    config: Config = context.obj.load()
    given = {"gateway_workers": workers, "gateway_spool_size": spool_size, "gateway_grace": grace}
    update: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    if gateway and not config.gateway:
        update["gateway"] = True
    elif update and not config.gateway:
        raise typer.BadParameter("--workers, --spool-size and --grace are for the gateway: give --gateway as well")
    if port_mapping is not None:
        update["port_mapping"] = port_mapping
    config = config.model_copy(update=update)
    late.log.set_up(config.log_level, config.log_format)
    raise typer.Exit(late.daemon.run(config))


@app.command(epilog=_examples("agentd status", "agentd status --json", "agentd status --diff"))
def status(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="What would be changed now, one operation a line.")] = False,
) -> None:
    """Show how this host is: controller, map, tunnel, firewall, peers. Exit code 1 when something is wrong."""
    config: Config = context.obj.load()
    if diff:
        operations = ask_daemon(config, DiffRequest(), Diff)
        typer.echo(operations.model_dump_json(indent=2) if json else late.show.diff(operations))
        return
    answer = ask_daemon(config, StatusRequest(), Status)
    if json:
        typer.echo(answer.model_dump_json(indent=2))
    else:
        late.show.status(answer)
    if not late.show.is_well(answer):
        raise typer.Exit(1)


@app.command(epilog=_examples("agentd peers", "agentd peers --json"))
def peers(
    context: typer.Context, json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False
) -> None:
    """List the peers that policy lets this host talk to, with what the tunnel knows of each."""
    answer = ask_daemon(context.obj.load(), PeersRequest(), Peers)
    if json:
        typer.echo(answer.model_dump_json(indent=2))
    else:
        late.show.peers(answer.peers)


@app.command(epilog=_examples("agentd paths", "agentd paths --json"))
def paths(
    context: typer.Context, json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False
) -> None:
    """List the ways to each peer: its endpoints, which of them answer and how fast, and the one in use."""
    answer = ask_daemon(context.obj.load(), PathsRequest(), Paths)
    if json:
        typer.echo(answer.model_dump_json(indent=2))
    else:
        late.show_paths.paths(answer)


@app.command(
    epilog=_examples("agentd ping db-1", "agentd ping db-1 --count 20 --interval 0.2", "agentd ping db-1 --json")
)
def ping(
    context: typer.Context,
    peer: Annotated[str, typer.Argument(metavar="NAME", help="A peer's name, full name, id or mesh address.")],
    count: Annotated[int, typer.Option("--count", "-c", min=1, max=10_000, help="How many questions.")] = 5,
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.1, max=60, help="Seconds between two.")] = 1.0,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable, in the end.")] = False,
) -> None:
    """Ask a peer's agentd by the way that WireGuard uses now, whatever policy allows inside the tunnel: path, round
    trip time, loss. Exit code 1 when nothing was answered.
    """
    if not late.pinging.ping(context.obj.load(), peer, count=count, interval=interval, json=json):
        raise typer.Exit(1)


@app.command(epilog=_examples("agentd netcheck", "agentd netcheck --json"))
def netcheck(
    context: typer.Context, json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False
) -> None:
    """Tell from where this host is seen, by which kind of NAT, and whether UDP reaches the controller."""
    answer = ask_daemon(context.obj.load(), NetcheckRequest(), Netcheck)
    if json:
        typer.echo(answer.model_dump_json(indent=2))
    else:
        late.show_paths.netcheck(answer)


@app.command(epilog=_examples("agentd whois 100.80.0.7", "agentd whois fd12:3456:789a::7 --json"))
def whois(
    context: typer.Context,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="A mesh address.")],
    json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Tell which node has a mesh address."""
    try:
        request = WhoisRequest(address=address)
    except ValueError:
        raise typer.BadParameter(f"{address!r} is not an IP address: write it like 192.0.2.1 or 2001:db8::1") from None
    answer = ask_daemon(context.obj.load(), request, Identity)
    if json:
        typer.echo(answer.model_dump_json(indent=2))
    else:
        late.show.identity(answer)


@app.command(epilog=_examples("agentd denied", "agentd denied --follow", "agentd denied --json"))
def denied(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable; with --follow, one object a line.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what is denied from now on.")] = False,
) -> None:
    """List the flows that this host denied in the last hour, by minute; `agentd status` has the exact counts."""
    config: Config = context.obj.load()
    answer = ask_daemon(config, DeniedRequest(), Denied)
    if not follow:
        typer.echo(answer.model_dump_json(indent=2) if json else late.show.denied(answer.denied))
        return
    while True:
        time.sleep(_FOLLOW_EVERY)
        before, answer = set(answer.denied), ask_daemon(config, DeniedRequest(), Denied)
        for denial in answer.denied:
            if denial not in before:
                typer.echo(denial.model_dump_json() if json else late.show.denial(denial))
        sys.stdout.flush()


@app.command(
    epilog=_examples(
        "agentd ca > mesh-ca.pem",
        "SSL_CERT_FILE=mesh-ca.pem python agent.py",
        "NODE_EXTRA_CA_CERTS=mesh-ca.pem node agent.js",
    )
)
def ca(context: typer.Context) -> None:
    """Print the mesh's CA certificate, for clients that call services over https."""
    status = ask_daemon(context.obj.load(), StatusRequest(), Status)
    if not status.ca:
        raise AgentError("no map with the CA has come from the controller yet: look at `agentd status`")
    typer.echo(status.ca, nl=False)


@app.command("write-names", epilog=_examples("sudo agentd write-names"))
def write_names(context: typer.Context) -> None:
    """Put the mesh's names into the hosts file for a daemon that may not; what wardmesh-names.service runs as root."""
    config: Config = context.obj.load()
    typer.echo(f"{config.hosts_file}: {'changed' if late.naming.write_left(config) else 'as it should be'}")


@app.command("rotate-key", epilog=_examples("sudo agentd rotate-key"))
def rotate_key(context: typer.Context) -> None:
    """Replace this host's WireGuard key; peers learn the new one from the controller."""
    answer = ask_daemon(context.obj.load(), RotateKeyRequest(), Rotated)
    typer.echo(f"the public key is now {answer.public_key}")


@app.command(epilog=_examples("sudo agentd leave", "sudo agentd leave --force"))
def leave(
    context: typer.Context,
    force: Annotated[
        bool, typer.Option("--force", help="Also when the controller cannot be told; it then still lists the node.")
    ] = False,
) -> None:
    """Leave the mesh and remove everything that agentd made on this host; a running daemon stops."""
    config: Config = context.obj.load()
    try:
        left = ask(config.socket, LeaveRequest(force=force), Left, patience=90)
    except NotRunningError:
        left = late.daemon.leave_without_daemon(config, force=force)
    for line in left.done:
        typer.echo(line)
    if not left.told:
        _say("warning: the controller was not told and still lists this node: remove it with `wardmesh node delete`")


def _say(line: str) -> None:
    typer.echo(line, err=True)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. What is meant for people is one line; only a defect has a traceback."""
    try:
        code = app(args=list(arguments), prog_name="agentd", standalone_mode=False)
        sys.stdout.flush()
    except (AgentError, KernelError, JoinStringError) as error:
        _say(f"agentd: {error}")
        return 1
    except typer.TyperException as error:
        return _wrong_usage(error)
    except BrokenPipeError:
        # The reader (head, less) has gone; pointing stdout at nothing keeps the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def _wrong_usage(error: typer.TyperException) -> int:
    if message := error.format_message():  # without one, the help has been printed
        context: typer.Context | None = getattr(error, "ctx", None)
        command = context.command_path if context else "agentd"
        _say(f"agentd: {message.rstrip('.')}. See `{command} --help`")
    return error.exit_code
