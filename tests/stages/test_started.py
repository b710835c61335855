from __future__ import annotations

import pytest
from starlette.types import Receive, Scope, Send

from proxy.core.errors import Overloaded
from proxy.core.exchange import Team
from proxy.providers.mistral.chat import CHAT
from proxy.stages import started
from tests.asgi import Log, call, exchange, services

LINE = (
    "info",
    "request_started",
    {
        "request_id": "id-1", "trace_id": "", "team": "research", "key_id": "0123", "operation": "chat.create",
        "endpoint": "/v1/chat/completions",
    },
)  # fmt: skip


async def test_the_line_comes_before_all_that_lasts() -> None:
    log, seen = Log(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(log.lines)
        raise Overloaded("no")

    stage = started.build("info", CHAT, services(log))
    assert stage
    with pytest.raises(Overloaded):
        await call(stage(app), exchange=exchange(team=Team("research", lambda name: True), key_id="0123"))
    assert seen == log.lines == [LINE]


@pytest.mark.parametrize(("level", "built"), [("debug", True), ("info", True), ("warning", False), ("error", False)])
def test_where_nobody_would_see_the_line_there_is_no_stage(level: str, built: bool) -> None:
    assert (started.build(level, CHAT, services()) is not None) == built
