"""The kernel that the kernel tests run on does what they rely on."""

import subprocess

import pytest

from tests.lab.kernel import has_wireguard


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_this_kernel_makes_wireguard_links() -> None:
    assert has_wireguard()


@pytest.mark.host_kernel
def test_a_network_namespace_has_a_loopback_link_of_its_own() -> None:
    assert "LOOPBACK" in run("unshare", "--net", "ip", "link", "show", "lo")
