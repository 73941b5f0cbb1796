"""The linters that `make recipe-tools` installs, beside this Python or on the path."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


def lint(tool: str, *words: str | Path) -> None:
    """Run a tool, which must find nothing; skips where it is not installed."""
    found = shutil.which(tool, path=str(Path(sys.executable).parent)) or shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed (make recipe-tools)")
    done = subprocess.run([found, *words], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
