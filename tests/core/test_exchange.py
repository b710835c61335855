from __future__ import annotations

from proxy.core.exchange import Exchange
from proxy.core.head import Head


def test_c9_an_exchange_in_a_traceback_tells_its_id_only() -> None:
    headers = ((b"authorization", b"Bearer sk-secret"), (b"cookie", b"sk-secret"))
    exchange = Exchange("id-1", "POST", "/sk-secret", Head(headers), "192.0.2.7", 0.0)
    exchange.body, exchange.model_asked = {"messages": "sk-secret"}, "sk-secret"
    for shown in (repr(exchange), str(exchange), f"{exchange}", repr({"state": [exchange]})):
        assert "<Exchange id-1>" in shown
        assert "sk-secret" not in shown
