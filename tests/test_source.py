"""What holds for the whole source and for what it is installed with, whatever single modules do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from blockbuster import BlockingError

from proxy.serving import local_key

ROOT = Path(__file__).parents[1]
LOCKS = [file for file in ROOT.rglob("*.lock") if not {".venv", "node_modules"} & set(file.parts)]

_WALL_CLOCK = re.compile(r"time\.time\b|\btime_ns\b|CLOCK_REALTIME|datetime\.now\(|utcnow|today\(")


def test_k10_only_those_who_start_something_look_at_the_wall_clock():
    """The process and the commands hand it on; the log and the simulator have it by default."""
    files = {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in (ROOT / "proxy").rglob("*.py")}
    looking = {name for name, text in files.items() if _WALL_CLOCK.search(text)}
    assert looking == {"proxy/logs.py", "proxy/simulator/app.py", "proxy/generation.py", "proxy/commands/__init__.py"}


async def test_k12_a_call_of_the_proxys_that_blocks_the_loop_fails_its_test(tmp_path):
    with pytest.raises(BlockingError):
        local_key.read_or_mint(tmp_path / "state" / "key")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.relative_to(ROOT).as_posix())
def test_k18_every_dependency_is_pinned_by_its_hash(lock):
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", lock.read_text("utf-8"), flags=re.MULTILINE)).splitlines()
    assert lines
    assert [
        line
        for line in lines
        if not re.match(r"[a-z0-9._-]+(\[[a-z0-9,_-]+\])?==\S+.*--hash=sha256:[0-9a-f]{64}", line)
    ] == []


def test_k18_nothing_is_installed_without_its_hash():
    for script in (ROOT / "scripts").iterdir():
        installs = [line for line in script.read_text("utf-8").splitlines() if "pip install" in line]
        assert [
            line for line in installs if "--require-hashes" not in line and "--no-deps --editable" not in line
        ] == []
