"""wardmesh path and relay, as commands against a real controller without hosts."""

from .bench import Cli


def test_lists_without_hosts_say_how_to_get_some(cli: Cli) -> None:
    for arguments, said in (
        (("path", "list"), "Hosts report them"),
        (("path", "netcheck"), "No hosts"),
        (("relay", "list"), "declared under `relays:`"),
    ):
        done = cli(*arguments)
        assert (done.code, done.out) == (0, "")
        assert said in done.err
        assert cli(*arguments, "--json").json() == []


def test_who_is_no_relay_or_no_node_is_named_in_the_error(cli: Cli) -> None:
    for arguments in (("relay", "show", "nobody"), ("path", "netcheck", "--node", "nobody")):
        done = cli(*arguments)
        assert done.code == 1
        assert "'nobody'" in done.err
