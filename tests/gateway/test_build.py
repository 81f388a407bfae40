"""Which code is under test."""

import os
import subprocess
import sys

from agentd.gateway.build import BUILD

WANTED = os.environ.get("WARDMESH_BUILD", "interpreted")


def test_the_code_under_test_is_the_one_that_was_asked_for() -> None:
    assert BUILD == WANTED


def test_the_processes_that_tests_start_run_the_same_code_and_say_so() -> None:
    told = subprocess.run([sys.executable, "-m", "agentd.gateway", "--version"], check=True, capture_output=True)
    assert told.stdout.decode().split()[0] == "wardmesh-gateway"
    assert told.stdout.decode().split()[2] == f"({WANTED})"
