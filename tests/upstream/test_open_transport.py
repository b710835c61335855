"""The setting chooses the transport, and only the chosen library is loaded."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal

import pytest

from proxy.upstream import open_transport
from proxy.upstream.aiohttp_transport import AiohttpTransport
from proxy.upstream.config import Config
from proxy.upstream.http1_transport import Http1Transport
from proxy.upstream.httpx_transport import HttpxTransport

OPEN = """
import asyncio, sys
from proxy.upstream import open_transport
from proxy.upstream.config import Config

async def main():
    await open_transport(Config(transport=sys.argv[1])).close()

asyncio.run(main())
print(*sorted({"aiohttp", "httpx2"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("name", "kind"), [("http1", Http1Transport), ("aiohttp", AiohttpTransport), ("httpx", HttpxTransport)]
)
async def test_the_setting_chooses(name: Literal["http1", "aiohttp", "httpx"], kind: type):
    transport = open_transport(Config(transport=name))
    assert type(transport) is kind
    await transport.close()


@pytest.mark.parametrize(("name", "loaded"), [("http1", []), ("aiohttp", ["aiohttp"]), ("httpx", ["httpx2"])])
def test_only_the_chosen_library_is_loaded(name: str, loaded: list[str]):
    run = subprocess.run([sys.executable, "-c", OPEN, name], capture_output=True, text=True, check=True)
    assert run.stdout.split() == loaded
