"""The `wardmesh-controller` command: reads options and environment, prints what people must see, maps errors to exits.

What it prints on standard output is for people and scripts: the first admin token, once, and `ready URL`. Logs go to
standard error.
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

import typer
import uvloop
from pydantic import ValidationError

from controller import late
from controller.clock import utc_now
from controller.settings import DEFAULT_STATE_DIR, Listen, Settings
from controller.state_dir import StateDir

if TYPE_CHECKING:
    from controller.wire.rest import AdminRole

__all__ = ["main"]

_YOUNG: Final = 20_000  # objects between collections of the youngest

app = typer.Typer(
    name="wardmesh-controller",
    help="The coordination server of a wardmesh: addresses, public keys and policy for its hosts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # their tracebacks show local variables, and with them secrets
    rich_markup_mode="markdown",
)
token = typer.Typer(help="Admin tokens.", no_args_is_help=True)
audit = typer.Typer(help="The record of every change.", no_args_is_help=True)
app.add_typer(token, name="token")
app.add_typer(audit, name="audit")

StateDirOption = Annotated[
    Path,
    typer.Option(
        "--state-dir", envvar="WARDMESH_STATE_DIR", help="Holds the database, the CA and the TLS key; mode 0700."
    ),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        envvar="WARDMESH_DATABASE_URL",
        show_default="SQLite in the state directory",
        show_envvar=True,
        help="PostgreSQL or SQLite. A URL with a password belongs in the environment: arguments are visible to all.",
    ),
]


@app.command()
def serve(
    *,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    listen: Annotated[str, typer.Option(help="ADDRESS:PORT, also [::]:8443.")] = "0.0.0.0:8443",
    stun_listen: Annotated[
        str | None,
        typer.Option(
            help="ADDRESS:PORT for STUN over UDP, there and at the next port, or 'off'.",
            show_default="port 3478 at the address of --listen",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="How hosts reach this controller; goes into join strings.", show_default="from --listen"),
    ] = None,
    database_url: DatabaseOption = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Your own certificate chain (PEM) instead of one from the mesh's CA.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="Its root, if hosts do not already trust it; join strings then pin it.")
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address or prefix whose Client-Cert and X-Forwarded-For are believed; repeatable."),
    ] = None,
    mesh_name: Annotated[str | None, typer.Option(help="First start only.", show_default="mesh")] = None,
    prefix4: Annotated[str | None, typer.Option(help="First start only.", show_default="100.88.0.0/16")] = None,
    prefix6: Annotated[str | None, typer.Option(help="First start only.", show_default="a random ULA /48")] = None,
    node_certificate_hours: Annotated[int, typer.Option(min=1, help="Lifetime of node certificates.")] = 72,
    address_quarantine: Annotated[
        int, typer.Option(min=0, help="Seconds that a released address rests before another node gets it.")
    ] = 3600,
    ephemeral_after: Annotated[
        int, typer.Option(min=60, help="Seconds that an ephemeral node may stay away before it is removed.")
    ] = 1800,
    keep_calls: Annotated[
        int, typer.Option(min=1, max=3660, help="Days that records of calls are kept (`wardmesh audit calls`).")
    ] = 30,
    grant_days: Annotated[
        int, typer.Option(min=1, max=366, help="How many days a temporary grant may last, from now.")
    ] = 30,
    client_rate: Annotated[
        int,
        typer.Option(
            min=0,
            envvar="WARDMESH_CLIENT_RATE",
            help="Requests a second from one client address, IPv6 by /64; 0: no limit.",
        ),
    ] = 200,
    key_rate: Annotated[
        int,
        typer.Option(min=0, envvar="WARDMESH_KEY_RATE", help="Joins a second by one enrolment key; 0: no limit."),
    ] = 50,
    stream_rate: Annotated[
        int,
        typer.Option(
            min=0, envvar="WARDMESH_STREAM_RATE", help="Streams a minute that one node may open; 0: no limit."
        ),
    ] = 60,
    streams_waiting: Annotated[
        int,
        typer.Option(
            min=1, envvar="WARDMESH_STREAMS_WAITING", help="Hosts that may wait for their greeting at the same time."
        ),
    ] = 1000,
    body_limit: Annotated[
        int,
        typer.Option(min=16, envvar="WARDMESH_BODY_LIMIT", help="KiB that the body of a request may have."),
    ] = 64,
    policy_limit: Annotated[
        int,
        typer.Option(
            min=64, envvar="WARDMESH_POLICY_LIMIT", help="KiB that a request with a policy document may have."
        ),
    ] = 9216,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    log_format: Annotated[str, typer.Option(help="plain or json, one line an event.")] = "plain",
    traces: Annotated[
        str | None,
        typer.Option(
            envvar="WARDMESH_TRACES",
            help="URL of an OpenTelemetry collector (OTLP over HTTP) for spans; needs wardmesh[tracing].",
            show_default="none are made",
        ),
    ] = None,
) -> None:
    """Serve the REST API and the agents' stream until SIGTERM or Ctrl-C.

    The first start makes the database, the mesh's CA and an admin token, which is printed once.

    Examples:

        wardmesh-controller serve --url https://mesh.example.com:8443

        wardmesh-controller serve --state-dir ./state --listen 127.0.0.1:8443

        WARDMESH_DATABASE_URL=postgresql://wardmesh@db.example.com/wardmesh wardmesh-controller serve

        wardmesh-controller serve --log-format json --traces http://127.0.0.1:4318
    """
    if log_level not in {"debug", "info", "warning", "error"}:
        _fail(f"--log-level {log_level}: choose debug, info, warning or error")
    if log_format not in {"plain", "json"}:
        _fail(f"--log-format {log_format}: choose plain or json")
    late.logs.configure(log_level, json_lines=log_format == "json")

    async def run() -> None:
        settings = Settings(
            state_dir=state_dir,
            listen=Listen.parse(listen),
            stun=_stun(stun_listen),
            url=url,
            database_url=database_url,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_ca=tls_ca,
            trusted_proxies=tuple(trusted_proxy or ()),
            mesh_name=mesh_name,
            prefix4=prefix4,
            prefix6=prefix6,
            node_lifetime=timedelta(hours=node_certificate_hours),
            address_quarantine=timedelta(seconds=address_quarantine),
            ephemeral_after=timedelta(seconds=ephemeral_after),
            calls_kept=timedelta(days=keep_calls),
            grant_longest=timedelta(days=grant_days),
            client_rate=client_rate,
            key_rate=key_rate,
            stream_rate=stream_rate,
            streams_waiting=streams_waiting,
            body_limit=body_limit * 1024,
            policy_limit=policy_limit * 1024,
            traces=traces,
        )
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with late.server.running(settings) as controller:
            if controller.first_token is not None:
                _say(f"admin token (shown once): {controller.first_token}")
            _say(f"ready {controller.url}")
            # What a start made stays until the end: full collections, which stop everything, need not look at it.
            gc.collect()
            gc.freeze()
            # Most of what a request makes is gone again before so much has come together, and never grows old.
            gc.set_threshold(_YOUNG)
            await stop.wait()

    _run(run())


def _stun(text: str | None) -> Listen | Literal["off"] | None:
    if text is None:
        return None
    if text == "off":
        return "off"
    return Listen.parse(text, "--stun-listen")


@app.command()
def migrate(*, state_dir: StateDirOption = DEFAULT_STATE_DIR, database_url: DatabaseOption = None) -> None:
    """Bring the database to the schema of this version, while no controller runs on it. `serve` does it too.

    Example:

        wardmesh-controller migrate --state-dir /var/lib/wardmesh-controller
    """

    async def run() -> None:
        settings = Settings(state_dir=state_dir, database_url=database_url)
        state = StateDir(state_dir)
        state.prepare()
        state.lock()
        engines = late.engine.Engines(settings.database)
        try:
            before, after = await late.migrate.migrate(engines)
        finally:
            await engines.dispose()
            state.unlock()
        _say(f"schema {after}" + (", nothing to do" if before == after else f", was {before or 'empty'}"))

    _run(run())


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    *,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    database_url: DatabaseOption = None,
) -> None:
    """Write the whole mesh, as it is at one moment, to a file. The controller may go on serving.

    The file holds the CA's key: keep it as secret as the state directory. It can be restored into SQLite and
    PostgreSQL, whichever it comes from.

    Example:

        wardmesh-controller backup /var/backups/wardmesh-$(date +%F).db
    """

    async def run() -> None:
        rows = await late.backup.back_up(Settings(state_dir=state_dir, database_url=database_url), file, utc_now)
        _say(f"{rows} rows and the CA are in {file}")

    _run(run())


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="What `backup` wrote, by this version or an older one.")],
    *,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    database_url: DatabaseOption = None,
) -> None:
    """Make the mesh in a backup the one in an empty state directory and database.

    What happened after the backup is gone: nodes that joined since must join again, nodes that were removed since are
    back until they are removed again. Hosts notice, and get their whole map anew.

    Examples:

        wardmesh-controller restore /var/backups/wardmesh-2026-01-31.db --state-dir ./state

        WARDMESH_DATABASE_URL=postgresql://wardmesh@db.example.com/new wardmesh-controller restore wardmesh.db
    """

    async def run() -> None:
        rows = await late.backup.restore(Settings(state_dir=state_dir, database_url=database_url), file, utc_now)
        _say(f"{rows} rows and the CA are restored; start the controller with the same options as before")

    _run(run())


@token.command("create")
def token_create(
    *,
    role: Annotated[str, typer.Option(help="admin, member (gives nodes the tags of its user) or read.")] = "admin",
    user: Annotated[str | None, typer.Option(help="Whose it is, as the policy's tag owners name them.")] = None,
    note: Annotated[str, typer.Option(help="What it is for.")] = "",
    ttl: Annotated[int | None, typer.Option(min=1, help="Seconds until it expires.", show_default="never")] = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    database_url: DatabaseOption = None,
) -> None:
    """Make an admin token and print it, also while the controller runs. For the machine's owner who lost the others.

    Examples:

        wardmesh-controller token create --note "after losing the first"

        wardmesh-controller token create --role read --ttl 86400

        wardmesh-controller token create --role member --user alice
    """
    if role not in {"admin", "member", "read"}:
        _fail(f"--role {role}: choose admin, member or read")
    granted: AdminRole = "admin" if role == "admin" else "member" if role == "member" else "read"
    try:
        wanted = late.rest.AdminTokenCreate(role=granted, user=user, note=note, ttl=ttl)
    except ValidationError as error:
        _fail(error.errors()[0]["msg"].removeprefix("Value error, "))

    async def run() -> None:
        settings = Settings(state_dir=state_dir, database_url=database_url)
        store = await late.bootstrap.open_existing(settings, utc_now)
        try:
            created = await late.tokens.Tokens(store, utc_now).create("system", wanted)
        finally:
            await store.close()
        _say(created.secret)

    _run(run())


@audit.command("verify")
def audit_verify(*, state_dir: StateDirOption = DEFAULT_STATE_DIR, database_url: DatabaseOption = None) -> None:
    """Check the audit's hash chain from its first entry; print the last one's number and hash.

    Example:

        wardmesh-controller audit verify
    """

    async def run() -> None:
        store = await late.bootstrap.open_existing(Settings(state_dir=state_dir, database_url=database_url), utc_now)
        try:
            seq, last = await late.backup.verify_audit(store)
        finally:
            await store.close()
        _say(f"{seq} entries, unbroken; the last hash is {last}")

    _run(run())


def main() -> None:
    """Entry point."""
    os.umask(0o077)
    app()


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    except late.failures.EXPECTED as error:
        _fail(str(error))


def _say(line: str) -> None:
    print(line, flush=True)


def _fail(message: str) -> NoReturn:
    print(f"wardmesh-controller: {message}", file=sys.stderr)
    raise SystemExit(1)
