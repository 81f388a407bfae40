"""The gateway as it is installed, with its data path compiled: for the tests and benches that are to run on that.

`environment()` builds it where it was not built yet. Knows no test and no bench.
"""

import os
import subprocess
from pathlib import Path
from typing import Final

__all__ = ["environment"]

ROOT: Final = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """What makes a Python of .venv run the compiled code, with everything that it starts.

    pytest also needs `--import-mode=append`: otherwise it puts the sources first.
    """
    built = subprocess.run([ROOT / "tests/compiled/build"], check=True, stdout=subprocess.PIPE, text=True)
    return {
        "PYTHONPATH": os.pathsep.join([built.stdout.strip(), str(ROOT)]),
        "PYTHONSAFEPATH": "1",  # or `python -m` would put the working directory first
        "WARDMESH_BUILD": "compiled",  # what tests/gateway/test_build.py then expects
    }
