"""The state directory: private, atomic, locked, and honest about what it could not do."""

import os
import stat
from pathlib import Path

import pytest

from agentd.errors import StateError
from agentd.keys import IdentityKey, WireguardKey
from agentd.state import CERTIFICATE, IDENTITY_KEY, NETMAP, NODE, WIREGUARD_KEY, NodeFile, StateDir
from controller.wire.netmap import Mesh

NODE_FILE = NodeFile(
    url="https://controller.example:8443",
    trust="mesh",
    ca="0" * 64,
    node_id="n1",
    name="db-1",
    mesh=Mesh(id="m1", name="lab", prefix4="100.80.0.0/16", prefix6="fd00:1234::/48"),
    addresses=("100.80.0.1",),
)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    directory = StateDir(tmp_path / "state")
    directory.create()
    return directory


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_may_read(state: StateDir) -> None:
    state.write(WIREGUARD_KEY, b"secret")
    with state.lock():
        assert (mode(state.path), mode(state.path / WIREGUARD_KEY), mode(state.path / "lock")) == (0o700, 0o600, 0o600)


def test_files_are_private_whatever_the_umask(state: StateDir) -> None:
    before = os.umask(0)
    try:
        state.write(NODE, b"{}")
    finally:
        os.umask(before)
    assert mode(state.path / NODE) == 0o600


@pytest.mark.usefixtures("root")
def test_root_writes_for_the_owner_of_the_directory(state: StateDir) -> None:
    os.chown(state.path, 12345, 54321)
    state.write(WIREGUARD_KEY, b"secret")
    with state.lock():
        for name in (WIREGUARD_KEY, "lock"):
            written = (state.path / name).stat()
            assert (written.st_uid, written.st_gid) == (12345, 54321)


def test_a_write_replaces_the_whole_and_leaves_no_other_file(state: StateDir) -> None:
    state.write(NODE, b"first, and longer")
    state.write(NODE, b"second")
    assert state.read(NODE) == b"second"
    assert [path.name for path in state.path.iterdir()] == [NODE]


def test_a_write_that_fails_leaves_the_old_content(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    state.write(NODE, b"old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StateError, match=r"cannot write .*node\.json: the disk is full: free some space and try again"):
        state.write(NODE, b"new")
    monkeypatch.undo()
    assert state.read(NODE) == b"old"
    assert [path.name for path in state.path.iterdir()] == [NODE]


def test_only_one_process_holds_it(state: StateDir) -> None:
    with (
        state.lock(),
        pytest.raises(StateError, match=rf"another agentd \(process {os.getpid()}\) is using .*--state-dir"),
        StateDir(state.path).lock(),
    ):
        pass
    with StateDir(state.path).lock():
        pass


def test_a_directory_that_is_not_there_means_not_joined(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="has not joined; run `agentd join` first"), StateDir(tmp_path / "no").lock():
        pass


def test_nothing_was_written_means_none(state: StateDir) -> None:
    found = (state.node(), state.wireguard_key(), state.identity_key(), state.certificate())
    assert found == (None, None, None, None)


def test_what_was_written_is_read(state: StateDir) -> None:
    wireguard, identity = WireguardKey.generate(), IdentityKey.generate()
    state.write(WIREGUARD_KEY, wireguard.text)
    state.write(IDENTITY_KEY, identity.text)
    state.write(NODE, NODE_FILE.model_dump_json().encode())
    read_wireguard, read_identity = state.wireguard_key(), state.identity_key()
    assert read_wireguard is not None
    assert read_identity is not None
    assert (read_wireguard.public, read_identity.text) == (wireguard.public, identity.text)
    assert state.node() == NODE_FILE


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (NODE, StateDir.node),
        (WIREGUARD_KEY, StateDir.wireguard_key),
        (IDENTITY_KEY, StateDir.identity_key),
        (CERTIFICATE, StateDir.certificate),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(state: StateDir, name: str, read: object) -> None:
    assert callable(read)
    state.write(name, b"\x00garbage")
    with pytest.raises(
        StateError, match=rf"{name} is damaged .*restore it from a backup, or run `agentd leave --force`"
    ):
        read(state)


def test_a_file_that_is_set_aside_keeps_its_content(state: StateDir) -> None:
    state.write(NETMAP, b"half")
    aside = state.set_aside(NETMAP)
    assert aside.read_bytes() == b"half"
    assert aside.name.startswith("netmap.json.damaged-")
    assert state.read(NETMAP) is None


def test_clear_removes_ours_and_leaves_what_is_not(state: StateDir) -> None:
    for name in (NODE, NETMAP, WIREGUARD_KEY):
        state.write(name, b"x")
    state.set_aside(NETMAP)
    (state.path / "notes.txt").write_text("the administrator's")
    state.clear(directory=True)
    assert [path.name for path in state.path.iterdir()] == ["notes.txt"]


def test_clear_removes_the_directory_when_nothing_is_left(state: StateDir) -> None:
    state.write(NODE, b"x")
    removed = state.clear(directory=True)
    assert not state.path.exists()
    assert state.path in removed


def test_a_reservation_leaves_nothing(state: StateDir) -> None:
    with state.reserve(65536):
        assert (state.path / "reserve").stat().st_size == 65536
    assert list(state.path.iterdir()) == []


def test_a_symbolic_link_is_not_followed(state: StateDir, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (state.path / ".node.json.tmp").symlink_to(victim)
    with pytest.raises(StateError, match="symbolic link"):
        state.write(NODE, b"x")
    assert victim.read_text() == "precious"


def test_a_parent_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="the directory above it does not exist"):
        StateDir(tmp_path / "a" / "b").create()
