"""What all tests share: the markers, and which kernel a test may run on.

`tests/run` decides where each part runs and says so in $WARDMESH_KERNEL; a test started by hand runs where it is.
"""

import os
import platform
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.lab.kernel import has_wireguard

TESTS = Path(__file__).parent
MARKERS = {
    "host_kernel": "needs no WireGuard in the kernel: tests/run runs it on the host even when the rest goes to a guest",
    "fresh_input": "draws new input in every run: a failure is a finding, and is not run again to see if it passes",
}


# A machine that does other things besides is slow; what a test finds must not depend on that.
settings.register_profile("wardmesh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wardmesh")


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_report_header() -> str:
    where = os.environ.get("WARDMESH_GUEST")
    return f"kernel: {platform.release()}" + (f" (guest, {where})" if where else "")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this kernel cannot run, saying what can. Only by hand: tests/run sends every test where it belongs."""
    keep_selected(config, items)
    for item in items:
        if item.get_closest_marker("fresh_input"):
            item.add_marker(pytest.mark.flaky(reruns=0))
    needing = [item for item in items if _needs_wireguard(item)]
    if needing and not has_wireguard():
        _skip(needing, "this kernel has no WireGuard: use `tests/run kernel -- ARGUMENTS`")
    if os.environ.get("WARDMESH_GUEST") != "virtual-time":
        slow = [item for item in items if item.path.is_relative_to(TESTS / "virtual_time")]
        _skip(slow, "it would take hours: use `tests/run virtual-time -- ARGUMENTS`")


@pytest.fixture
def root() -> None:
    """For tests that become somebody else. tests/run is always root."""
    if os.geteuid() != 0:
        pytest.fail("only root can become somebody else: use tests/run")


def _skip(items: list[pytest.Item], reason: str) -> None:
    for item in items:
        item.add_marker(pytest.mark.skip(reason=reason))


def keep_selected(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Apply $WARDMESH_SELECT: tests/run splits a part between host and guest by the host_kernel marker."""
    select = os.environ.get("WARDMESH_SELECT")
    if not select:
        return
    wanted = select == "host_kernel"
    dropped = [item for item in items if (item.get_closest_marker("host_kernel") is not None) != wanted]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


def _needs_wireguard(item: pytest.Item) -> bool:
    return item.path.is_relative_to(TESTS / "kernel") and not item.get_closest_marker("host_kernel")
