from __future__ import annotations

import pytest

from proxy.core.errors import UnsupportedParameter
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.providers.mistral import PROVIDER
from proxy.providers.reserved import NAMES

TABLES = {row.operation: row.request for row in PROVIDER.endpoints if row.request}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operation", TABLES)
def test_a_reserved_name_is_refused_by_every_endpoint_with_a_body(operation: str, name: str, strict: bool) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "input": "x", name: "x"}
    del body["input" if operation.startswith("chat") else "messages"]
    with pytest.raises(UnsupportedParameter) as caught:
        TABLES[operation].translate(body, Context(Model("m"), body, strict, notes={"model": "m"}))
    assert caught.value.param == name


def test_what_openai_or_mistral_know_is_not_reserved() -> None:
    assert not set(NAMES) & {"user", "metadata", "guardrails", "store", "model", "provider"}
