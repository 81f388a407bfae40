"""Fixtures that several files of kernel tests share."""

from collections.abc import Iterator

import pytest

from tests.kernel.guarded import Guarded, guarded_host


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    """A host behind our table, and a hostile neighbour on its mesh link."""
    with guarded_host() as host:
        yield host
