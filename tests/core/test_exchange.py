from __future__ import annotations

from proxy.core.exchange import Exchange


def test_c9_an_exchange_in_a_traceback_tells_its_id_only() -> None:
    headers = ((b"authorization", b"Bearer sk-secret"), (b"cookie", b"sk-secret"))
    exchange = Exchange("id-1", "POST", "/sk-secret", headers, "192.0.2.7", 0.0)
    exchange.body, exchange.model_asked = {"messages": "sk-secret"}, "sk-secret"
    for shown in (repr(exchange), str(exchange), f"{exchange}", repr({"state": [exchange]})):
        assert "<Exchange id-1>" in shown
        assert "sk-secret" not in shown


def test_the_first_of_two_headers_is_the_header() -> None:
    exchange = Exchange("id-1", "GET", "/", ((b"a", b"1"), (b"b", b"2"), (b"b", b"3")), "", 0.0)
    assert (exchange.header(b"b"), exchange.header(b"c")) == (b"2", None)
    assert [exchange.values(name) for name in (b"a", b"b", b"c")] == [[b"1"], [b"2", b"3"], []]
