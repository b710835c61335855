"""How the proxy speaks TLS to a provider: there is one way, and no setting that weakens it."""

from __future__ import annotations

import ssl


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


def reason(error: BaseException | None) -> str:
    """Why a handshake failed, fit for a log: "certificate has expired"."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return getattr(error, "reason", None) or "the handshake failed"
    return "the server hung up during the handshake"
