"""What a page in a browser is allowed to see."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.stages import cors
from tests.asgi import Answer, Headers, call, exchange, ok, services

PAGE = b"https://chat.example.com"
LISTED = [PAGE.decode(), "http://localhost:5173"]
STRANGERS = [
    b"https://evil.example", b"null", b"", b"*", b"http://chat.example.com", b"https://chat.example.com:443",
    b"https://chat.example.com.evil.example", b"https://evil.chat.example.com", b"https://chat.example.co",
    b"https://chat.example.com/", b"HTTPS://CHAT.EXAMPLE.COM", b"https://chat.example.com, https://evil.example",
    b"http://localhost", b"http://localhost:51730", b"file://", b"https://chat.example.com\xe9",
]  # fmt: skip


async def refused(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 405, "headers": [(b"allow", b"POST")]})
    await send({"type": "http.response.body", "body": b"no"})


async def ask(
    *headers: tuple[bytes, bytes], method: str = "POST", origins: list[str] = LISTED, app: ASGIApp = ok
) -> Answer:
    stage = cors.build(origins, services())
    assert stage
    return await call(stage(app), method, exchange=exchange(list(headers), method=method))


def of_cors(answer: Answer) -> dict[str, str]:
    names = [name.decode() for name, _ in answer.headers]
    assert len(names) == len(set(names))
    return {name: answer.header(name) or "" for name in names if name.startswith("access-control-") or name == "vary"}


def preflight(origin: bytes = PAGE, names: bytes | None = b"authorization,content-type") -> Headers:
    headers = [(b"origin", origin), (b"access-control-request-method", b"POST")]
    return headers if names is None else [*headers, (b"access-control-request-headers", names)]


def test_c18_without_origins_there_is_no_such_stage() -> None:
    assert cors.build([], services()) is None


@pytest.mark.parametrize("origin", LISTED)
@pytest.mark.parametrize("app", [ok, refused])
async def test_c18_a_listed_page_is_named_on_every_answer(origin: str, app: ASGIApp) -> None:
    answer = await ask((b"origin", origin.encode()), app=app)
    found = of_cors(answer)
    assert "x-request-id" in found.pop("access-control-expose-headers").split(", ")
    assert found == {"access-control-allow-origin": origin, "vary": "origin"}
    assert answer.status in (200, 405)


@pytest.mark.parametrize("origin", STRANGERS)
async def test_c18_another_page_is_told_nothing(origin: bytes) -> None:
    assert of_cors(await ask((b"origin", origin))) == {"vary": "origin"}
    answer = await ask(*preflight(origin), method="OPTIONS", app=refused)
    assert (answer.status, answer.body, of_cors(answer)) == (405, b"no", {"vary": "origin"})


async def test_c18_who_claims_two_origins_has_none() -> None:
    assert of_cors(await ask((b"origin", PAGE), (b"origin", PAGE))) == {"vary": "origin"}


async def test_c18_a_program_that_is_no_page() -> None:
    assert of_cors(await ask()) == {"vary": "origin"}  # a cache must not give its answer to a page


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError


async def test_c18_a_preflight_goes_no_further() -> None:
    answer = await ask(*preflight(), method="OPTIONS", app=never)
    assert (answer.status, answer.body) == (204, b"")
    found = of_cors(answer)
    assert found.pop("access-control-expose-headers")
    assert found == {
        "access-control-allow-origin": PAGE.decode(),
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": "authorization,content-type",
        "access-control-max-age": "600",
        "vary": "origin",
    }


@pytest.mark.parametrize("headers", [[(b"origin", PAGE)], [(b"access-control-request-method", b"POST")], []])
async def test_c18_another_options_is_what_it_is_without_cors(headers: Headers) -> None:
    assert (await ask(*headers, method="OPTIONS", app=refused)).status == 405
    assert (await ask(*preflight(), app=refused)).status == 405  # a POST is none either


OPENAI = (
    b"authorization,content-type,openai-beta,openai-organization,openai-project,x-stainless-arch,x-stainless-lang,"
    b"x-stainless-os,x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,"
    b"x-stainless-runtime-version,x-stainless-timeout,x-request-id,x-proxy-translation"
)


@pytest.mark.parametrize("names", [OPENAI, b"a", b"a, b ,\tc", b"!#$%&'*+.^_`|~-", b"a" * 64, b",".join([b"x"] * 64)])
async def test_c18_names_of_headers_are_repeated(names: bytes) -> None:
    answer = await ask(*preflight(names=names), method="OPTIONS", app=never)
    assert answer.header("access-control-allow-headers") == names.decode()


@pytest.mark.parametrize(
    "names",
    [
        None, b"", b" ", b",", b"a,", b"a b", b"a:b", b"a\r\nset-cookie: x=1", b"a\nb", b"caf\xe9", b"a\x00", b'"a"',
        b"(a)",
        b"a" * 65, b",".join([b"x"] * 65), b"a;b", b"<script>", b"a/b", b"a=b", b"{a}", b"a@b", b"[a]", b"a\\b", b"a?",
    ],
)  # fmt: skip
async def test_c18_nothing_else_is(names: bytes | None) -> None:
    answer = await ask(*preflight(names=names), method="OPTIONS", app=never)
    assert (answer.status, answer.header("access-control-allow-headers")) == (204, None)


@given(origin=st.binary(max_size=40), names=st.binary(max_size=80))
async def test_c18_whatever_is_asked_only_listed_origins_and_names_come_back(origin: bytes, names: bytes) -> None:
    found = of_cors(await ask(*preflight(origin, names), method="OPTIONS"))
    assert found.get("access-control-allow-origin") in (None, *LISTED)
    assert found.get("access-control-allow-headers", "").replace("\t", " ").isprintable()


@pytest.mark.parametrize("origin", [PAGE, b"null", b"https://evil.example"])
async def test_c18_everybody_is_everybody_and_never_with_credentials(origin: bytes) -> None:
    for method, headers in (("POST", [(b"origin", origin)]), ("OPTIONS", preflight(origin))):
        found = of_cors(await ask(*headers, method=method, origins=["*"]))
        assert found["access-control-allow-origin"] == "*"
        assert not {"vary", "access-control-allow-credentials"} & set(found)
    assert of_cors(await ask(origins=["*"])) == {}


async def test_other_scopes_pass() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    stage = cors.build(LISTED, services())
    assert stage
    await stage(app)({"type": "lifespan"}, nothing, nothing)
    assert seen == ["lifespan"]
