"""Fixtures that several files of kernel tests share."""

from collections.abc import Iterator

import pytest

from tests.kernel.daemons import Mesh, next_guest
from tests.kernel.guarded import Guarded, guarded_host
from tests.lab import Host, Lab
from tests.lab.mesh import ALLOW_ALL, Agent, Controller


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    """A host behind our table, and a hostile neighbour on its mesh link."""
    with guarded_host() as host:
        yield host


@pytest.fixture(scope="module")
def shared() -> Iterator[Mesh]:
    """A mesh of two hosts, one for all tests of a file."""
    with Lab() as lab:
        switch = lab.switch("net")
        controller = Controller.start(lab.host("controller", switch))
        controller.put_policy(ALLOW_ALL)
        left, right = (Agent.join(lab.host(name, switch), controller.join_string()) for name in ("left", "right"))
        yield Mesh(lab, switch, controller, left, right)


@pytest.fixture
def mesh(shared: Mesh) -> Mesh:
    """The two hosts as if no test had been before."""
    shared.heal()
    return shared


@pytest.fixture
def guest(shared: Mesh) -> Iterator[Host]:
    """A third host, which has not joined; what joined from it is gone afterwards."""
    host = shared.lab.host(next_guest(), shared.switch)
    yield host
    for process in host.processes:
        process.kill()
    host.run("ip", "link", "del", "wardmesh0", check=False)
    if host.name in shared.names():
        shared.delete(host.name)
