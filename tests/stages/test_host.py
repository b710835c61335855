from __future__ import annotations

import pytest

from proxy.core.errors import HostNotAllowed
from proxy.stages import host
from tests.asgi import call, exchange, ok, services


async def ask(*values: bytes, loopback: bool = True, hosts: tuple[str, ...] = ()) -> int:
    found = exchange([(b"host", value) for value in values])
    return (await call(host.build(loopback, list(hosts), services())(ok), exchange=found)).status


@pytest.mark.parametrize("value", [b"localhost", b"LOCALHOST:8080", b"127.0.0.1:8080", b"[::1]:80", b"proxy.test"])
async def test_our_own_names_pass(value: bytes) -> None:
    assert await ask(value, hosts=("proxy.test",)) == 200


@pytest.mark.parametrize("value", [b"evil.test", b"evil.test:8080", b"localhost.evil.test", b"127.0.0.1.evil.test"])
async def test_another_name_is_refused_on_a_loopback_address(value: bytes) -> None:
    with pytest.raises(HostNotAllowed, match=r"server\.hosts"):
        await ask(value)


async def test_any_name_passes_elsewhere() -> None:
    assert await ask(b"proxy.example:8080", loopback=False) == 200


async def test_what_is_no_host_is_not_ours() -> None:
    for values in ((), (b"",), (b"x/admin?a=",), (b"localhost/",)):
        with pytest.raises(HostNotAllowed):
            await ask(*values)
