"""The configuration file: all optional, and every mistake an error that names the file, the key and the remedy."""

from pathlib import Path

import pytest

from agentd.config import Config, load
from agentd.errors import ConfigError


def written(directory: Path, text: str) -> Path:
    file = directory / "agentd.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load(written(tmp_path, "")) == Config()


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: there is no such configuration file"):
        load(tmp_path / "absent.toml")


def test_the_command_line_wins(tmp_path: Path) -> None:
    file = written(tmp_path, 'state_dir = "/from/file"\nsocket = "/from/file.sock"')
    config = load(file, state_dir=tmp_path)
    assert (config.state_dir, config.socket) == (tmp_path, Path("/from/file.sock"))


def test_all_keys_are_read(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        name = "db-1"
        link = "mesh0"
        listen_port = 4500
        stun_port = 4501
        port_mapping = false
        mtu = 1280
        relay_rate = 20
        table = "mesh"
        backend = "userspace"
        endpoints = ["198.51.100.7:51820", "[2001:db8::7]:51820"]
        addresses = ["100.80.0.7"]
        state_dir = "/srv/mesh"
        socket = "/run/mesh.sock"
        socket_group = "mesh"
        gateway = "mesh-gateway"
        gateway_workers = 4
        gateway_spool_size = 1024
        gateway_grace = 0.5
        hosts_file = "/etc/netns/mesh/hosts"
        dns = "127.0.0.2:53"
        log_level = "debug"
        log_format = "json"
        metrics = "[::1]:9586"
        """,
    )
    config = load(file)
    assert config.endpoints == ("198.51.100.7:51820", "[2001:db8::7]:51820")
    assert set(config.model_fields_set) == set(Config.model_fields)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("lisen_port = 1", "unknown key 'lisen_port': did you mean 'listen_port'?"),
        ("[table]\nx = 1", "table: "),
        ('dns = "192.0.2.1:53"', "give an address of the loopback link, or false"),
        ('dns = "127.0.0.1"', "is not an endpoint"),
        ('hosts_file = "hosts"', "give one from /, or false"),
        ('gateway = "no body"', "give true, false or a user's name"),
        ("gateway_workers = 0", "gateway_workers: must be greater than or equal to 1 (found 0)"),
        ("gateway_spool_size = 0.5", "gateway_spool_size: must be a valid integer (found 0.5)"),
        ("gateway_grace = -1", "gateway_grace: must be greater than or equal to 0 (found -1)"),
        ('metrics = "9586"', "metrics"),
        ("zzz = 1", "unknown key 'zzz': known keys are name, addresses"),
        ("listen_port = 0", "listen_port: must be greater than or equal to 1 (found 0)"),
        ('listen_port = "51820"', "listen_port: must be a valid integer (found '51820')"),
        ("listen_port = true", "listen_port: must be a valid integer (found True)"),
        ("relay_rate = -1", "relay_rate: must be greater than or equal to 0 (found -1)"),
        ("mtu = 1279", "mtu: must be greater than or equal to 1280 (found 1279)"),
        ('link = "a/b"', "link: 'a/b' is not a link name"),
        ('link = "sixteen-letters0"', "is not a link name: use 1-15"),
        ('table = "a b"', "is not an nftables table name"),
        ('name = "Db"', "name: 'Db' is not a DNS label"),
        ('name = "d\u0430"', "(U+0430), which only looks like a plain letter"),
        ('endpoints = ["192.0.2.1"]', "endpoints.0: '192.0.2.1' is not an endpoint: write it like"),
        ('endpoints = "192.0.2.1:1"', "endpoints: must be a valid list"),
        ('addresses = ["10.0.0.256"]', "addresses.0: '10.0.0.256' is not an IP address"),
        ('backend = "magic"', "backend: must be 'auto', 'kernel' or 'userspace' (found 'magic')"),
        (f'socket = "/{"x" * 107}"', "is longer than the 107 bytes"),
        ("listen_port =", "not TOML"),
    ],
)
def test_a_mistake_names_file_key_and_remedy(tmp_path: Path, text: str, remedy: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load(file)
    message = str(raised.value)
    assert message.startswith(f"{file}: ")
    assert remedy in message
    assert "\n" not in message


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "agentd.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not TOML"):
        load(file)


@pytest.mark.parametrize(
    ("text", "user"),
    [("", "wardmesh-gateway"), ("gateway = true", "wardmesh-gateway"), ('gateway = "nobody"', "nobody")],
)
def test_the_gateway_has_a_user_of_its_own(tmp_path: Path, text: str, user: str) -> None:
    assert load(written(tmp_path, text)).gateway_user == user


def test_names_may_be_kept_nowhere(tmp_path: Path) -> None:
    assert load(written(tmp_path, "hosts_file = false")).hosts_file is False


def test_the_gateways_state_is_beside_agentds() -> None:
    assert Config().gateway_dir == Path("/var/lib/wardmesh-gateway")
