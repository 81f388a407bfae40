"""login and logout: which controller is believed, and the token for it.

The token is never an argument, because argument lists are visible to every process of the machine. It leaves this
machine only after the controller's certificate has been verified.
"""

from pathlib import Path
from typing import Annotated

import typer

from controller.client import session
from controller.client.ask import agree, secret
from controller.client.errors import InputError, UntrustedError
from controller.client.files import read_text
from controller.client.output import note, print_json
from controller.client.rest import RestClient
from controller.client.trust import PinnedCa, fetch_ca, parse_fingerprint, system_context

from .help import examples, group
from .options import JsonFlag

__all__ = ["app"]


app = group("Which controller is believed, and the token for it.", "wardmesh login https://mesh.example.com:8443")


@app.command(
    epilog=examples(
        "wardmesh login https://mesh.example.com:8443 --ca-sha256 4f0c…",
        "wardmesh login https://mesh.example.com:8443 --ca ca.pem --token-file admin.token",
        "pass mesh/admin | wardmesh login https://mesh.example.com --token-file -",
    )
)
def login(
    url: Annotated[str, typer.Argument(metavar="URL", help="https://HOST[:PORT]")],
    *,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Read the admin token from this file; - is standard input. Otherwise it is asked for."),
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="Trust this CA certificate (PEM) and no other.")] = None,
    ca_sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="Trust the CA that the controller serves if this is its SHA-256.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Trust an unknown CA on first use, without being asked.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Save a controller and an admin token for the other commands.

    Without --ca or --ca-sha256, a CA that an earlier login pinned for the same URL stays pinned; otherwise this
    machine's trust store decides; and if it does not know the certificate either, you are shown the fingerprint of the
    controller's CA, to compare with that of ca.pem in its state directory.
    """
    url = session.check_url(url)
    trusted = _trusted_ca(url, ca=ca, fingerprint=ca_sha256, yes=yes, quiet=json)
    token = read_text(token_file) if token_file else secret(f"Admin token for {url}: ")
    candidate = session.Session(url=url, token=session.check_token(token), ca=trusted)
    with candidate.open() as controller:
        status = controller.status()
    path = session.save(candidate)
    if json:
        print_json({"url": url, "mesh": status.mesh.name, "ca": trusted.fingerprint if trusted else "system"})
    else:
        note(f"Logged in to mesh {status.mesh.name} at {url}; saved in {path}")


@app.command(epilog=examples("wardmesh logout"))
def logout(json: JsonFlag = False) -> None:
    """Forget the saved controller and token on this machine.

    The token itself stays valid: `wardmesh token revoke ID` ends it.
    """
    removed = session.forget()
    if json:
        print_json({"removed": removed})
    else:
        note("Logged out; the token stays valid until it is revoked." if removed else "There was no saved login.")


def _trusted_ca(url: str, *, ca: Path | None, fingerprint: str | None, yes: bool, quiet: bool) -> PinnedCa | None:
    """The CA to pin; None to use this machine's trust store."""
    if ca and fingerprint:
        raise InputError("--ca and --ca-sha256 say the same thing: give one of them")
    if ca:
        return PinnedCa.from_pem(read_text(ca), source=str(ca))
    if fingerprint:
        expected, served = parse_fingerprint(fingerprint), fetch_ca(url)
        if served.fingerprint != expected:
            raise UntrustedError(
                f"{url} serves a CA with SHA-256 {served.fingerprint}, not {expected}: either the fingerprint is of "
                "another controller, or somebody is answering in its place"
            )
        return served
    saved = session.load_saved_for(url)
    if saved:
        return saved.ca
    if _system_trusts(url):
        return None
    served = fetch_ca(url)
    # With --json, standard error is for one problem at most; the result names the fingerprint.
    show = (lambda _: None) if quiet and yes else note
    show(
        f"The certificate of {url} is signed by a CA that this machine does not know.\n"
        f"  SHA-256 of the CA: {served.fingerprint}\n"
        "Compare it, on the controller: openssl x509 -noout -fingerprint -sha256 -in STATE-DIR/ca.pem"
    )
    agree("Trust this CA for this controller from now on?", yes=yes, option="--yes, --ca or --ca-sha256")
    return served


def _system_trusts(url: str) -> bool:
    """Ask with no token, so that an impostor learns nothing."""
    with RestClient(url, None, system_context()) as controller:
        try:
            controller.health()
        except UntrustedError:
            return False
    return True
