from __future__ import annotations

import json

from proxy import data
from proxy.core.catalogue import Catalogue
from tests.e2e.conftest import Stage
from tests.e2e.quotas import good
from tests.e2e.wire import ask, chat

SIZE = Catalogue(data.read("models.yaml")).model("mistral-small-latest").context or 0


async def test_a_long_conversation_is_cut_for_those_who_ask(stage: Stage) -> None:
    """Nearly all of the context is kept for the answer, so that a few words are too many."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    talk = [
        {"role": "system", "content": "Be brief."},
        *({"role": "user" if n % 2 == 0 else "assistant", "content": f"{n} " + "word " * 200} for n in range(20)),
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "It rains."},
        {"role": "user", "content": "Thanks."},
    ]
    asked = chat(messages=talk, max_tokens=SIZE - 800, headers={"x-proxy-context": "sliding-window"})
    async with stage.upstream(good) as seen:
        found = await ask(stage.url, asked)
        whole = await ask(stage.url, chat(messages=talk, max_tokens=SIZE - 800))
    assert (found.status, whole.status) == (200, 200)
    cut, uncut = (json.loads(one.body)["messages"] for one in seen.requests)
    assert "cut:messages:18" in (found.header("x-proxy-rewrites") or "").split(", ")
    assert [message["role"] for message in cut] == ["system", "user", "assistant", "user", "assistant", "tool", "user"]
    assert cut[1]["content"].startswith("18 ")
    assert len(uncut) == len(talk)
    assert "cut" not in (whole.header("x-proxy-rewrites") or "")
