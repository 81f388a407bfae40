"""peer: phones, routers and anything else that speaks WireGuard but runs no agentd.

With --generate-key the key pair is made in this process; the controller receives the public half only.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from controller.client.ask import agree
from controller.client.errors import InputError
from controller.client.files import read_text, write_private
from controller.client.output import note, print_json, print_line, table
from controller.client.rest import RestClient
from controller.client.session import connect
from controller.client.wgquick import KeyPair, qr, with_private_key
from controller.wire.rest import Node, StaticPeerCreate

from .help import examples, group
from .options import JsonFlag, NodeArgument, YesFlag, build

__all__ = ["app"]

app = group(
    "Static peers: devices with WireGuard but without agentd.",
    "wardmesh peer add phone --generate-key --qr",
    "wardmesh peer list",
)

OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the wg-quick file here, mode 0600.")
]
QrFlag = Annotated[bool, typer.Option("--qr", help="Show the wg-quick file as a QR code for the WireGuard apps.")]
ForceFlag = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


@app.command(
    epilog=examples(
        "wardmesh peer add phone --generate-key --qr --tag tag:people",
        "wardmesh peer add router --generate-key -o wg0.conf --endpoint 198.51.100.7:51820",
        'wardmesh peer add nas --public-key "$(wg pubkey < nas.key)" -o nas.conf',
    )
)
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A DNS label: a-z, 0-9 and '-'.")],
    *,
    public_key: Annotated[str | None, typer.Option(metavar="KEY", help="Its WireGuard public key.")] = None,
    generate_key: Annotated[
        bool, typer.Option("--generate-key", help="Make its key pair here; the controller never sees the private key.")
    ] = False,
    tag: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    address: Annotated[list[str] | None, typer.Option(help="Ask for this mesh address; one per family.")] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS:PORT", help="Where others can reach it; may be repeated.")
    ] = None,
    output: OutputOption = None,
    show_qr: QrFlag = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Add a static peer and hand out its wg-quick file.

    With --generate-key the file is complete, and is written to NAME.conf unless --output or --qr says otherwise; with
    --public-key, whoever has the private key adds it to the [Interface] section.
    """
    if generate_key == (public_key is not None):
        raise InputError("say whose key it is: --public-key KEY, or --generate-key to make a pair here")
    pair = KeyPair.generate() if generate_key else None
    request = build(
        lambda: StaticPeerCreate(
            name=name,
            public_key=pair.public if pair else public_key or "",
            tags=tuple(tag or ()),
            addresses=tuple(address or ()),
            endpoints=tuple(endpoint or ()),
        )
    )
    if pair and output is None and not show_qr:
        output = Path(f"{request.name}.conf")
    # Found out before the peer exists: a generated key that cannot be kept would be lost.
    if output and output.exists() and not force:
        raise InputError(f"{output} exists already: choose another with --output, or replace it with --force")
    with connect() as controller:
        node = controller.create_peer(request)
        try:
            wg_quick = _wg_quick(controller, node, pair)
            _hand_out(node, wg_quick, output=output, show_qr=show_qr, force=force, json=json)
        except BaseException:
            if pair:  # its key is in no file, so nobody could ever use this peer
                controller.delete_node(node.id)
            raise


@app.command("list", epilog=examples("wardmesh peer list", "wardmesh peer list --json"))
def list_peers(json: JsonFlag = False) -> None:
    """List the static peers."""
    with connect() as controller:
        peers = sorted(controller.nodes(kind="static"), key=lambda node: node.name)
    if json:
        print_json(peers)
        return
    table(
        ("NAME", "STATE", "ADDRESSES", "TAGS", "ENDPOINTS", "PUBLIC KEY"),
        (
            (
                peer.name,
                peer.state,
                " ".join(peer.addresses),
                " ".join(peer.tags) or "-",
                " ".join(peer.endpoints) or "-",
                peer.public_key,
            )
            for peer in peers
        ),
        empty="No static peers. `wardmesh peer add NAME --generate-key --qr` adds a phone.",
    )


@app.command(
    epilog=examples(
        "wardmesh peer config phone",
        "wardmesh peer config phone --key-from phone.conf -o phone.conf --force",
        "wardmesh peer config phone --key-from phone.key --qr",
    )
)
def config(
    node: NodeArgument,
    *,
    key_from: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Put in the private key from this wg-quick or `wg genkey` file; - is stdin."),
    ] = None,
    output: OutputOption = None,
    show_qr: QrFlag = False,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Print a static peer's wg-quick file as it is now: whom it may reach changes with the policy."""
    pair = KeyPair.read(read_text(key_from), source=str(key_from)) if key_from else None
    with connect() as controller:
        peer = _static(controller, node)
        if pair and pair.public != peer.public_key:
            raise InputError(f"the private key in {key_from} is not {peer.name}'s: its public key is {peer.public_key}")
        wg_quick = _wg_quick(controller, peer, pair)
    _hand_out(peer, wg_quick, output=output, show_qr=show_qr, force=force, json=json)


@app.command(epilog=examples("wardmesh peer delete phone", "wardmesh peer delete phone --yes"))
def delete(node: NodeArgument, yes: YesFlag = False, json: JsonFlag = False) -> None:
    """Remove a static peer: no host accepts its key afterwards."""
    with connect() as controller:
        peer = _static(controller, node)
        agree(f"Delete {peer.name} ({' '.join(peer.addresses)})?", yes=yes)
        controller.delete_node(peer.id)
    if json:
        print_json(peer)
    else:
        note(f"{peer.name} is deleted.")


def _static(controller: RestClient, reference: str) -> Node:
    found = controller.find_node(reference).value
    if found.kind != "static":
        raise InputError(f"{found.name} runs agentd and is no static peer: see `wardmesh node show {found.name}`")
    return found


def _wg_quick(controller: RestClient, node: Node, pair: KeyPair | None) -> str:
    text = controller.peer_config(node.id).wg_quick
    return with_private_key(text, pair.private) if pair else text


def _hand_out(node: Node, wg_quick: str, *, output: Path | None, show_qr: bool, force: bool, json: bool) -> None:
    drawing = qr(wg_quick, terminal=sys.stdout.isatty()) if show_qr else None
    if output:
        write_private(output, wg_quick, replace=force)
    if json:
        # A file's content is not repeated: it may hold the private key, and JSON goes to logs.
        shown = {"file": str(output)} if output else {"wg_quick": wg_quick}
        print_json({"node": node.model_dump(mode="json"), **shown})
        return
    if drawing:
        print_line(drawing)
    elif not output:
        print_line(wg_quick.rstrip("\n"))
    note(f"{node.name} has {' and '.join(node.addresses)}." + (f" Its wg-quick file is {output}." if output else ""))
    if "[Peer]" not in wg_quick:
        note(
            "Policy lets it talk to no host yet, so the file names no peer: after `wardmesh policy apply`, get it "
            f"again with `wardmesh peer config {node.name}`."
        )
