"""test_python.py once more, with the last openai 2.x and the httpx it was made for: both live in .venv/openai-2."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPENAI_2 = Path(sys.prefix) / "openai-2"
OPTIONS = ["-o", "addopts=", "-p", "no:cacheprovider", "-k", "http1 or version"]
"""Without `addopts` the plug-in use_httpx2 is not loaded, which would put httpx2 in the place of that httpx."""


def test_the_suite_passes() -> None:
    if not (OPENAI_2 / "openai").is_dir():
        absent = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        absent("no openai 2.x: scripts/install dev")
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, "tests/sdk/test_python.py"],
        cwd=ROOT,
        env=env | {"PYTHONPATH": str(OPENAI_2), "OPENAI_MAJOR": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed, ran.stdout
    assert int(passed[1]) > 50
