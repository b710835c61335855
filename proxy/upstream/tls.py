"""How the proxy speaks TLS to a provider: there is one way, and no setting that weakens it."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast


def client_context() -> ssl.SSLContext:
    """A context that verifies certificate and host name against the system's authorities, from TLS 1.2 upwards.

    Reads files: build it at start, not in a request. OpenSSL's SSL_CERT_FILE and SSL_CERT_DIR choose other authorities.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python obeys SSLKEYLOGFILE by itself: with it, whoever records the traffic reads the provider's key.
    context.keylog_filename = None  # type: ignore[assignment]  # typeshed does not know that None closes the log
    context.set_alpn_protocols(["http/1.1"])
    return context


def take_all_before_the_end(transport: asyncio.BaseTransport) -> None:
    """Keep TLS from reading on before what it holds has been taken.

    asyncio's and uvloop's hand over a buffer's worth at a time and read on meanwhile. When they find the end of the
    connection there, they forget the rest: an answer above 64 KB loses its last part if its server closes at once.
    """
    if transport.get_extra_info("ssl_object") is not None:
        cast(Any, transport).set_read_buffer_limits(high=1, low=0)


def reason(error: BaseException | None) -> str:
    """Why a handshake failed, fit for a log: "certificate has expired"."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return getattr(error, "reason", None) or "the handshake failed"
    return "the server hung up during the handshake"
