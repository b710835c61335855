"""One request at the door: its key, its body, its framing; what is wrong with it is told in one shape."""

from __future__ import annotations

import pytest

from tests.conftest import OTHER_KEY, TEAM_KEY, Proxy
from tests.e2e.wire import CHAT, ask, chat, connect, request

MODELS = "/v1/models"

# Keys.


@pytest.mark.parametrize(
    "authorization",
    [
        "", "Bearer", "Bearer ", "Bearer x", f"Basic {TEAM_KEY}", TEAM_KEY, f"Bearer {TEAM_KEY}x",
        f"Bearer {TEAM_KEY[:-1]}", f"Bearer {TEAM_KEY.upper()}", f"Bearer {TEAM_KEY}, Bearer {TEAM_KEY}",
        f"Bearer {TEAM_KEY} x", f"Bearer: {TEAM_KEY}", "Bearer \xe9\xff", "Bearer " + "x" * 5000,
    ],
)  # fmt: skip
async def test_every_wrong_key_gets_the_same_answer(proxy: Proxy, authorization: str) -> None:
    expected = await ask(proxy.url, request(target=MODELS, authorization="", x_request_id="same"))
    refused = await ask(proxy.url, request(target=MODELS, authorization=authorization, x_request_id="same"))
    assert (refused.status, refused.error()["code"]) == (401, "invalid_api_key")
    assert refused.header("www-authenticate") == "Bearer"
    assert refused.body == expected.body
    assert [name for name, _ in refused.headers] == [name for name, _ in expected.headers]


async def test_c24_a_key_anywhere_else_is_no_key(proxy: Proxy) -> None:
    for data in (
        request(target=f"{MODELS}?api_key={TEAM_KEY}", authorization=""),
        request(target=f"{MODELS}?key={TEAM_KEY}", authorization=""),
        request(target=MODELS, authorization="", x_api_key=TEAM_KEY),
        request(target=MODELS, authorization="", api_key=TEAM_KEY),
        request(target=MODELS, authorization="", cookie=f"key={TEAM_KEY}"),
        request(target=MODELS, authorization="", proxy_authorization=f"Bearer {TEAM_KEY}"),
    ):
        assert (await ask(proxy.url, data)).status == 401


async def test_c7_the_keys_of_two_teams_are_refused(proxy: Proxy) -> None:
    line = f"authorization: Bearer {OTHER_KEY}\r\n\r\n".encode()
    assert (await ask(proxy.url, request(target=MODELS)[:-2] + line)).status == 400


async def test_the_scheme_is_read_as_http_says(proxy: Proxy) -> None:
    for authorization in (f"bearer {TEAM_KEY}", f"BEARER {TEAM_KEY}", f"Bearer   {TEAM_KEY}"):
        assert (await ask(proxy.url, request(target=MODELS, authorization=authorization))).status == 200


async def test_a_wrong_key_uploads_nothing(proxy: Proxy) -> None:
    """It is refused while its body is still to come."""
    async with connect(proxy.url) as client:
        await client.send(
            request("POST", CHAT, authorization="Bearer no", content_type="application/json", content_length="900000")
        )
        assert (await client.answer()).status == 401


# Request ids.


async def test_a_good_request_id_is_kept_and_a_bad_one_replaced(proxy: Proxy) -> None:
    assert (await ask(proxy.url, request(x_request_id="my.id-1_2"))).header("x-request-id") == "my.id-1_2"
    for bad in ("a b", "x" * 129, "<script>", "a,b", "é"):
        answered = await ask(proxy.url, request(x_request_id=bad))
        assert (answered.header("x-request-id") or "").isalnum()
        assert len(answered.header("x-request-id") or "") == 32


async def test_a_connection_serves_many_requests(proxy: Proxy) -> None:
    data = [request(), chat("x"), chat("x", stream=True), request(target="/nowhere"), chat("x", model=""), request()]
    async with connect(proxy.url) as client:
        for at, one in enumerate(data):
            await client.send(one.replace(b"\r\n", b"\r\nx-request-id: %d\r\n" % at, 1))
            answered = await client.answer()
            assert answered.header("x-request-id") == str(at)
            assert answered.header("connection") is None
