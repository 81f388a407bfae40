"""What the tests of faults share: how patient agents are, and where the seed comes from."""

import os
import random
from collections.abc import Iterator

import pytest

from ..databases import Cluster, postgresql_cluster


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents come back within a moment: their pauses are a matter of the state machine's own tests."""
    monkeypatch.setattr("agentd.session._FIRST_PAUSE", 0.05)
    monkeypatch.setattr("agentd.session._LONGEST_PAUSE", 0.2)


@pytest.fixture
def seed() -> int:
    """A new one in each run, printed with a failure; WARDMESH_CHAOS_SEED repeats one."""
    chosen = int(os.environ.get("WARDMESH_CHAOS_SEED") or random.randrange(2**32))
    print(f"WARDMESH_CHAOS_SEED={chosen}")
    return chosen


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """A server that these tests may kill."""
    with postgresql_cluster() as started_:
        yield started_
