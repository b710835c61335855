"""How soon a changed file is in force, on every worker: the promise is one second.

    python -m bench.reload [RELOADS]

A proxy with 1, 2 and 4 workers. The file is replaced, and the time runs until the log says that all of them serve it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from bench.load import now

RELOADS = 20
WORKERS = (1, 2, 4)
PATIENCE = 10.0
"""Seconds after which a change counts as never noticed."""

CONFIG = """
server: {{port: 0, workers: {workers}}}
store: {{url: "redis://127.0.0.1:1"}}
teams: {{bench: {{keys: ["${{TEAM_KEY}}"]}}}}
models: {{default: model-{number}}}
"""
ENVIRONMENT = {"TEAM_KEY": "team-key-000000000000", "MISTRAL_API_KEY": "provider-key-00000000", "PYTHONUNBUFFERED": "1"}


def write(file: Path, workers: int, number: int) -> None:
    """As editors and Kubernetes do: a new file is renamed into place."""
    new = file.with_suffix(".new")
    new.write_text(CONFIG.format(workers=workers, number=number))
    new.replace(file)


@asynccontextmanager
async def serving(file: Path) -> AsyncIterator[asyncio.StreamReader]:
    """The output of a running proxy."""
    command = Path(sys.executable).with_name("mistral-proxy")
    process = await asyncio.create_subprocess_exec(
        command, "serve", "--config", file, env={**os.environ, **ENVIRONMENT}, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    try:
        yield process.stdout
    finally:
        process.terminate()
        await process.communicate()


async def line_with(output: asyncio.StreamReader, text: str, generation: int | None = None) -> None:
    """Read until a line has this text and, if asked, is about this generation."""
    async with asyncio.timeout(PATIENCE):
        while line := await output.readline():
            if text.encode() in line and generation in (None, _generation(line)):
                return
    raise RuntimeError("the proxy has ended")


def _generation(line: bytes) -> object:
    return msgspec.json.decode(line).get("generation") if line.startswith(b"{") else None


async def seconds(workers: int, reloads: int) -> list[float]:
    """From each change to all workers."""
    applied = '"reloaded"' if workers == 1 else '"reloaded_everywhere"'
    with TemporaryDirectory() as folder:
        file = Path(folder) / "proxy.yaml"
        write(file, workers, 1)
        async with serving(file) as output:
            await line_with(output, "is ready on")
            found = []
            for number in range(2, reloads + 2):
                write(file, workers, number)
                start = now()
                await line_with(output, applied, number)
                found.append(now() - start)
        return found


def main() -> None:
    reloads = int(sys.argv[1]) if len(sys.argv) > 1 else RELOADS
    print("| workers | median | max |\n| --- | --: | --: |")
    for workers in WORKERS:
        found = asyncio.run(seconds(workers, reloads))
        print(f"| {workers} | {statistics.median(found):.2f} s | {max(found):.2f} s |", flush=True)


if __name__ == "__main__":
    main()
