"""The wheel that users install: it holds the program and its data, and nothing else, and runs from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_k18_it_holds_the_program_and_its_data_and_nothing_that_runs_at_start(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "proxy").rglob("*.py")}
    scripts = {str(path.relative_to(ROOT)) for path in (ROOT / "proxy").rglob("*.lua")}
    data = {f"proxy/config/{path.name}" for path in (ROOT / "config").iterdir()}
    assert scripts
    assert names == modules | scripts | data


def test_it_runs_away_from_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "installed")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "installed"), "PYTHONSAFEPATH": "1"}
    code = "import proxy, proxy.cli; print(proxy.__file__); proxy.cli.main(['models'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout.splitlines()[0]
    assert "mistral-small-2603" in done.stdout


def test_its_version_is_the_programs(wheel: zipfile.ZipFile) -> None:
    from proxy import __version__

    assert f"mistral_proxy-{__version__}.dist-info/METADATA" in wheel.namelist()
