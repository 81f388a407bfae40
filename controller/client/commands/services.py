"""service: list, show, move. Services are declared in the policy; here is where they are now."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from controller.client.output import ago, detail, note, plain, print_json, table, when
from controller.client.session import connect
from controller.wire.services import MeshService, ServiceHost, ServiceMove

from .help import examples, group
from .options import JsonFlag, NodeArgument, build

__all__ = ["app"]

app = group(
    "Services of the policy that have mesh addresses of their own.",
    "wardmesh service list",
    "wardmesh service show github",
)
_Service = Annotated[str, typer.Argument(metavar="NAME", help="Its name in the policy.")]


@app.command("list", epilog=examples("wardmesh service list", "wardmesh service list --json"))
def list_services(json: JsonFlag = False) -> None:
    """List the services, and who holds each."""
    with connect() as controller:
        services = list(controller.services())
    if json:
        print_json(services)
        return
    now = datetime.now(UTC)
    table(
        ("NAME", "KIND", "URL", "HOLDER", "HEALTHY", "HOSTS", "SINCE"),
        (
            (
                one.name,
                one.kind,
                _url(one),
                one.holder or "-",
                _health(one),
                " ".join(host.name for host in one.hosts) or "-",
                ago(one.since, now),
            )
            for one in services
        ),
        empty="No services. They are declared under `services:` in the policy.",
    )


@app.command("show", epilog=examples("wardmesh service show github", "wardmesh service show github --json"))
def show(name: _Service, json: JsonFlag = False) -> None:
    """Show one service and the hosts that may serve it."""
    with connect() as controller:
        found = controller.service(_bare(name))
    if json:
        print_json(found)
        return
    now = datetime.now(UTC)
    detail(
        (
            ("name", found.name),
            ("kind", found.kind),
            ("url", _url(found)),
            *((("over TLS", _tls_url(found)),) if found.tls_port is not None else ()),
            ("addresses", " ".join(found.addresses)),
            ("holder", found.holder or "-"),
            ("since", f"{when(found.since)} ({ago(found.since, now)})"),
            ("healthy", _health(found)),
            *((f"host {host.name}", _host(host)) for host in found.hosts),
        )
    )


@app.command(
    epilog=examples("wardmesh service move github tools2", "wardmesh service move github tools2 --force"),
)
def move(
    name: _Service,
    node: NodeArgument,
    force: Annotated[bool, typer.Option("--force", help="Also to a node that cannot answer now.")] = False,
    json: JsonFlag = False,
) -> None:
    """Give a service's addresses to another host that may serve it. Its callers need not do anything.

    It stays there until that host is lost, or it is moved again.
    """
    wanted = build(lambda: ServiceMove(node=node, force=force))
    with connect() as controller:
        found = controller.move_service(_bare(name), wanted)
    if json:
        print_json(found)
    else:
        note(f"{found.holder or 'Nobody'} holds {found.name} ({' '.join(found.addresses)}).")


def _bare(name: str) -> str:
    return name.removeprefix("svc:")


def _url(service: MeshService) -> str:
    port = "" if service.port == 80 else f":{service.port}"
    return f"http://{service.fqdn}{port}{plain(service.path)}"


def _tls_url(service: MeshService) -> str:
    port = "" if service.tls_port == 443 else f":{service.tls_port}"
    return f"https://{service.fqdn}{port}{plain(service.path)}"


def _health(service: MeshService) -> Text:
    if service.healthy:
        return Text("yes", style="green")
    return Text(f"no: {plain(service.error)}" if service.error else "no", style="red")


def _host(host: ServiceHost) -> Text:
    if host.healthy:
        return Text("healthy", style="green")
    return Text(f"{'online' if host.online else 'offline'}: {plain(host.error or 'not healthy')}", style="red")
