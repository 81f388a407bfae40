"""Which wheel is built where. That the compiled one works is what tests/gateway runs on."""

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.compiled import ROOT, environment

BACKEND = ROOT / "deploy/wheel"


def build(into: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    code = "import sys, wardmesh_build; wardmesh_build.build_wheel(sys.argv[1])"
    return subprocess.run(
        [sys.executable, "-B", "-c", code, str(into)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(BACKEND), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("environment", [{"WARDMESH_COMPILE": "never"}, {"CC": "no-such-compiler"}])
def test_without_a_compiler_the_wheel_has_the_sources_alone_and_says_why(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    built = build(tmp_path, environment)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "agentd/gateway/jsonrpc.py" in names
    assert not [name for name in names if name.endswith(".so")]
    assert "not compiled" in built.stderr + built.stdout


def test_it_fails_where_it_must_be_compiled_and_cannot(tmp_path: Path) -> None:
    built = build(tmp_path, {"WARDMESH_COMPILE": "always", "CC": "no-such-compiler"})
    assert built.returncode != 0
    assert "there is no no-such-compiler: install a C compiler" in built.stderr


def test_a_setting_that_is_none_is_refused(tmp_path: Path) -> None:
    built = build(tmp_path, {"WARDMESH_COMPILE": "yes"})
    assert built.returncode != 0
    assert "WARDMESH_COMPILE is 'yes': set it to auto, always or never" in built.stderr


def test_the_compiled_wheel_has_each_module_as_its_source_too() -> None:
    tree = Path(environment()["PYTHONPATH"].partition(":")[0])
    compiled = [path for path in tree.rglob("*.so") if path.parent != tree]
    assert len(compiled) > 20
    for path in compiled:
        source = path.with_name(path.name.partition(".")[0] + ".py")
        assert source.read_bytes() == (ROOT / source.relative_to(tree)).read_bytes()
