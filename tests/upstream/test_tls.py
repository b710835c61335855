"""TLS: a certificate is verified, old versions are refused, and nothing is sent before both are sure."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from pathlib import Path

import pytest
import trustme

from proxy.upstream import tls
from proxy.upstream.transport import TransportError
from tests.upstream.conftest import Authority, Open
from tests.upstream.scripted import Peer, Upstream, answer, every_request, soon, upstream, whole


def old(authority: Authority) -> ssl.SSLContext:
    """A server that speaks nothing newer than TLS 1.1."""
    context = authority.server()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


def from_elsewhere(authority: Authority) -> ssl.SSLContext:
    return Authority(trustme.CA()).server()


def self_signed(authority: Authority) -> ssl.SSLContext:
    other = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with other.private_key_pem.tempfile() as key, other.cert_pem.tempfile() as certificate:
        context.load_cert_chain(certificate, key)
    return context


BAD = {
    "expired": (Authority.expired, "certificate has expired"),
    "wrong host": (lambda authority: authority.server("example.org"), "Hostname mismatch"),
    "unknown authority": (from_elsewhere, "unable to get local issuer certificate"),
    "self-signed": (self_signed, "self-signed certificate"),
    "TLS 1.1": (old, "PROTOCOL_VERSION|hung up|handshake failed"),
}


@pytest.mark.parametrize(("server_context", "reason"), BAD.values(), ids=BAD)
async def test_a_bad_server_gets_no_byte_of_the_request(open_to: Open, authority: Authority, server_context, reason):
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.gone())

    async with upstream(script, server_context(authority)) as server:
        with pytest.raises(TransportError, match=reason) as caught:
            await whole(open_to(server.url), headers=[("authorization", "Bearer secret")])
    assert caught.value.kind == "tls"
    assert b"".join(seen) == b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_good_server(open_to: Open, authority: Authority, version: ssl.TLSVersion):
    context = authority.server()
    context.minimum_version = context.maximum_version = version
    async with upstream(every_request(answer(b"ok")), context) as server:
        transport = open_to(server.url)
        assert [await whole(transport) for _ in range(3)] == [b"ok"] * 3


async def test_a_server_that_hangs_up_during_the_handshake(open_to: Open):
    async def script(peer: Peer) -> None:
        await peer.reader.read(1)

    async with upstream(script) as server:
        server.scheme = "https"
        with pytest.raises(TransportError) as caught:
            await whole(open_to(server.url))
    assert caught.value.kind == "tls"


async def test_a_server_that_never_answers_the_handshake(open_to: Open):
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.gone()
        gone.set()

    async with upstream(script) as server:
        server.scheme = "https"
        with pytest.raises(TransportError) as caught:
            await whole(open_to(server.url, connect=0.05))
        assert caught.value.kind == "connect_timeout"
        await soon(gone.wait())


async def test_no_key_log_is_written(
    authority: Authority, open_to: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    log = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    context = tls.client_context()
    authority.ca.configure_trust(context)
    async with upstream(every_request(answer(b"ok")), authority.server()) as server:
        assert await handshake(server, context)
    assert not log.exists() or "CLIENT" not in log.read_text()


async def handshake(server: Upstream, context: ssl.SSLContext) -> bool:
    _, writer = await soon(asyncio.open_connection("127.0.0.1", server.port, ssl=context, server_hostname="localhost"))
    writer.close()
    return True


def test_the_context_verifies_from_tls_1_2():
    context = tls.client_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_handshake_that_fails_without_a_reason():
    assert tls.reason(ssl.SSLError()) == "the handshake failed"
    assert tls.reason(None) == "the server hung up during the handshake"
